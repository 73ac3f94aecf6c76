import torch

from transformer.embeddings import PAD, JointEmbedding, null_captions, text_lengths


def embedding(config) -> JointEmbedding:
    """One whose every parameter is drawn apart, so that no two tokens can be taken for each other."""
    module = JointEmbedding(config)
    torch.manual_seed(1)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def test_sequence_by_hand(make_config):
    config = make_config()
    module = embedding(config)
    text_tokens = torch.tensor([[7, 2, PAD, PAD, PAD]])
    image_tokens = torch.tensor([[3, 0, 12, 5]])  # the last one stands in the second row of a grid three wide
    expected = torch.stack(
        [
            module.bos + module.text_position[0],
            module.text_token.weight[7] + module.text_position[1],
            module.text_token.weight[2] + module.text_position[2],
            module.pads[2] + module.text_position[3],
            module.pads[3] + module.text_position[4],
            module.pads[4] + module.text_position[5],
            module.image_token.weight[3] + module.image_row[0] + module.image_column[0],
            module.image_token.weight[0] + module.image_row[0] + module.image_column[1],
            module.image_token.weight[12] + module.image_row[0] + module.image_column[2],
            module.image_token.weight[5] + module.image_row[1] + module.image_column[0],
        ]
    )
    torch.testing.assert_close(module(text_tokens, image_tokens)[0], expected)


def test_image_positions_from_the_middle(make_config):
    module = embedding(make_config())
    image_tokens = torch.arange(12)[None]
    whole = module.image(image_tokens)
    torch.testing.assert_close(module.image(image_tokens[:, 5:9], start=5), whole[:, 5:9])


def test_no_token_can_produce_a_pad_or_bos(make_config):
    """At every text position, the pad differs from all entries of the vocabulary, and BOS does."""
    config = make_config()
    module = embedding(config)
    entries = torch.arange(config.text_vocab_size)[:, None].expand(-1, config.text_len - 1)
    real, pads = module.text(entries), module.text(null_captions(1, config.text_len))
    assert real.shape == (11, 6, 16)
    assert ((real[:, 1:] - pads[:, 1:]).abs().amax(dim=-1) > 0.1).all()
    assert ((module.text_token.weight - module.bos).abs().amax(dim=-1) > 0.1).all()


def test_pads_learn_only_where_they_stand(make_config):
    module = embedding(make_config())
    module.text(torch.tensor([[1, 2, PAD, 4, PAD]])).sum().backward()
    assert module.pads.grad.abs().sum(dim=1).gt(0).tolist() == [False, False, True, False, True]
    # The pad's place is looked up in no table: id 0, which stands in for it, learns nothing from it.
    assert module.text_token.weight.grad.abs().sum(dim=1).gt(0).nonzero().flatten().tolist() == [1, 2, 4]


def test_text_lengths_count_bos():
    tokens = torch.tensor([[5, 1, 2], [5, PAD, PAD], [PAD, PAD, PAD]])
    assert text_lengths(tokens).tolist() == [4, 2, 1]
    assert text_lengths(tokens).dtype == torch.int32
