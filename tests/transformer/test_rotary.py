import torch

from transformer.rotary import positions_2d, rotary_angles, rotate


def test_positions(make_config):
    positions = positions_2d(make_config()).int().tolist()
    assert positions[:6] == [[-6, 0], [-5, 0], [-4, 0], [-3, 0], [-2, 0], [-1, 0]]
    assert positions[6:11] == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]]
    assert len(positions) == 6 + 12


def test_products_depend_on_the_difference_of_positions_only(make_config):
    config = make_config(grid_size=(5, 5))
    angles = rotary_angles(config).double()
    torch.manual_seed(0)
    q, k = torch.randn(2, config.head_dim, dtype=torch.double)

    def score(q_row: int, q_column: int, k_row: int, k_column: int) -> float:
        at_q, at_k = (
            angles[config.text_len + row * 5 + column] for row, column in ((q_row, q_column), (k_row, k_column))
        )
        return float(rotate(q, at_q.cos(), at_q.sin()) @ rotate(k, at_k.cos(), at_k.sin()))

    expected = score(2, 3, 1, 1)
    assert abs(score(4, 4, 3, 2) - expected) < 1e-6
    assert abs(score(2, 3, 1, 2) - expected) > 1e-3
    assert abs(score(3, 3, 1, 1) - expected) > 1e-3


def test_rotation_keeps_lengths_and_turns_by_the_angle():
    x = torch.tensor([[1.0, 0.0, 0.0, 2.0]])
    turned = rotate(x, torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]]))  # a quarter turn of (1, 0) and (0, 2)
    torch.testing.assert_close(turned, torch.tensor([[0.0, -2.0, 1.0, 0.0]]))
