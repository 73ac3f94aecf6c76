"""The masks against pictures drawn by hand, against brute force, and against the paper's pair and block counts."""

from dataclasses import replace

import pytest
import torch

from kernels.patterns import CONV_WRAPS, KINDS, RULES, Pattern, attends, attends_image, attention_mask, dense_mask

ALL_RULES = [(kind, "linear") for kind in KINDS if kind != "conv"] + [("conv", wrap) for wrap in CONV_WRAPS]

# The paper's toy case: 6 text tokens, 4x4 image tokens, a 3x3 window. Lines are queries, # is a key that is seen; the
# gaps set off text, and the rows of the grid.

ROW = """
#.....  .... .... .... ....
##....  .... .... .... ....
###...  .... .... .... ....
####..  .... .... .... ....
#####.  .... .... .... ....
######  .... .... .... ....

######  #... .... .... ....
######  ##.. .... .... ....
######  ###. .... .... ....
######  #### .... .... ....

######  #### #... .... ....
######  .### ##.. .... ....
######  ..## ###. .... ....
######  ...# #### .... ....

######  .... #### #... ....
######  .... .### ##.. ....
######  .... ..## ###. ....
######  .... ...# #### ....

######  .... .... #### #...
######  .... .... .### ##..
######  .... .... ..## ###.
######  .... .... ...# ####
"""

COLUMN = """
#.....  .... .... .... ....
##....  .... .... .... ....
###...  .... .... .... ....
####..  .... .... .... ....
#####.  .... .... .... ....
######  .... .... .... ....

######  #... .... .... ....
######  .#.. .... .... ....
######  ..#. .... .... ....
######  ...# .... .... ....

######  #... #... .... ....
######  .#.. .#.. .... ....
######  ..#. ..#. .... ....
######  ...# ...# .... ....

######  #... #... #... ....
######  .#.. .#.. .#.. ....
######  ..#. ..#. ..#. ....
######  ...# ...# ...# ....

######  #... #... #... #...
######  .#.. .#.. .#.. .#..
######  ..#. ..#. ..#. ..#.
######  ...# ...# ...# ...#
"""

CONV_LINEAR = """
#.....  .... .... .... ....
##....  .... .... .... ....
###...  .... .... .... ....
####..  .... .... .... ....
#####.  .... .... .... ....
######  .... .... .... ....

######  #... .... .... ....
######  ##.. .... .... ....
######  .##. .... .... ....
######  #.## .... .... ....

######  ##.# #... .... ....
######  ###. ##.. .... ....
######  .### .##. .... ....
######  ..## #.## .... ....

######  ...# ##.# #... ....
######  .... ###. ##.. ....
######  .... .### .##. ....
######  .... ..## #.## ....

######  .... ...# ##.# #...
######  .... .... ###. ##..
######  .... .... .### .##.
######  .... .... ..## #.##
"""

CONV_CLAMPED = """
#.....  .... .... .... ....
##....  .... .... .... ....
###...  .... .... .... ....
####..  .... .... .... ....
#####.  .... .... .... ....
######  .... .... .... ....

######  #... .... .... ....
######  ##.. .... .... ....
######  .##. .... .... ....
######  ..## .... .... ....

######  ##.. #... .... ....
######  ###. ##.. .... ....
######  .### .##. .... ....
######  ..## ..## .... ....

######  .... ##.. #... ....
######  .... ###. ##.. ....
######  .... .### .##. ....
######  .... ..## ..## ....

######  .... .... ##.. #...
######  .... .... ###. ##..
######  .... .... .### .##.
######  .... .... ..## ..##
"""

CONV_MODULO = """
#.....  .... .... .... ....
##....  .... .... .... ....
###...  .... .... .... ....
####..  .... .... .... ....
#####.  .... .... .... ....
######  .... .... .... ....

######  #... .... .... ....
######  ##.. .... .... ....
######  .##. .... .... ....
######  ..## .... .... ....

######  ##.# #... .... ....
######  ###. ##.. .... ....
######  .### .##. .... ....
######  #.## ..## .... ....

######  .... ##.# #... ....
######  .... ###. ##.. ....
######  .... .### .##. ....
######  .... #.## ..## ....

######  .... .... ##.# #...
######  .... .... ###. ##..
######  .... .... .### .##.
######  .... .... #.## ..##
"""


def draw(mask: torch.Tensor) -> list[str]:
    return ["".join(".#"[seen] for seen in row) for row in mask.int().tolist()]


@pytest.mark.parametrize(
    ("kind", "wrap", "picture"),
    [
        ("row", "linear", ROW),
        ("column", "linear", COLUMN),
        ("conv", "linear", CONV_LINEAR),
        ("conv", "clamped", CONV_CLAMPED),
        ("conv", "modulo", CONV_MODULO),
    ],
)
def test_toy_case_drawn_by_hand(kind, wrap, picture):
    expected = [line.replace(" ", "") for line in picture.splitlines() if line]
    assert draw(dense_mask(Pattern(kind, 6, 4, 4, conv_kernel=3, conv_wrap=wrap))) == expected


def test_causal_is_the_lower_triangle():
    assert torch.equal(dense_mask(Pattern("causal", 6, 4, 4)), torch.ones(22, 22, dtype=torch.bool).tril())


def keys_of(kind: str, wrap: str, q: int, width: int, half: int) -> set[int]:
    """The image keys of image query q, by walking over rows and columns as the definitions are worded."""
    row, column = divmod(q, width)
    window = [(up, side) for up in range(half + 1) for side in range(-half, half + 1) if up or side <= 0]
    if kind == "causal":
        keys = set(range(q + 1))
    elif kind == "row":
        keys = {q - back for back in range(width + 1)}
    elif kind == "column":
        keys = {r * width + column for r in range(row + 1)}
    elif wrap == "linear":
        keys = {q - up * width + side for up, side in window}
    elif wrap == "clamped":
        keys = {(row - up) * width + column + side for up, side in window if 0 <= column + side < width}
    else:
        keys = {(row - up) * width + (column + side) % width for up, side in window if up or column + side >= 0}
    return {k for k in keys if 0 <= k <= q}


@pytest.mark.parametrize(("kind", "wrap"), ALL_RULES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (2, 3), (5, 7), (7, 5), (13, 11), (9, 16)])
def test_brute_force(kind, wrap, height, width):
    for kernel in (1, 3, 5, 11) if kind == "conv" else (11,):
        pattern = Pattern(kind, 1, height, width, kernel, wrap)
        image = dense_mask(pattern)[1:, 1:].tolist()
        found = [{k for k, seen in enumerate(row) if seen} for row in image]
        assert found == [keys_of(kind, wrap, q, width, pattern.half) for q in range(pattern.image_len)], kernel


def test_conv_linear_is_the_stated_set_of_offsets_at_every_width():
    for width in range(1, 14):
        for half in range(7):
            stated = set(range(half + 1)) | {width * r + c for r in range(1, half + 1) for c in range(-half, half + 1)}
            pattern = Pattern("conv", 1, 1, width, 2 * half + 1)
            offsets = torch.arange(width * (half + 2) + half + 2)
            seen = attends_image(pattern, offsets, torch.zeros_like(offsets))
            assert set(offsets[seen].tolist()) == {offset for offset in stated if offset >= 0}, (width, half)


def test_most_keys_of_an_image_query_at_32x32():
    most = {kind: int(dense_mask(Pattern(kind, 1, 32, 32))[:, 1:].sum(1).max()) for kind in ("row", "column", "conv")}
    assert most == {"row": 33, "column": 32, "conv": 61}


@pytest.mark.parametrize(("kind", "wrap"), ALL_RULES)
@pytest.mark.parametrize(("height", "width", "kernel"), [(13, 11, 5), (9, 16, 3), (8, 3, 5), (2, 7, 11), (1, 1, 3)])
def test_reach_is_never_exceeded_and_met_where_the_grid_allows(kind, wrap, height, width, kernel):
    pattern = Pattern(kind, 1, height, width, kernel, wrap)
    q, k = dense_mask(pattern)[1:, 1:].nonzero(as_tuple=True)
    farthest = int((q - k).max())
    if pattern.reach is None:
        assert kind in ("causal", "column")
    elif height > pattern.half + 1 and width > 2 * pattern.half:
        assert farthest == pattern.reach
    else:
        assert farthest <= pattern.reach


class TruncatingInt:
    """An integer whose // and % round towards zero, as they do inside a Triton kernel."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __sub__(self, other: "int | TruncatingInt") -> "TruncatingInt":
        return TruncatingInt(self.value - int(other))

    def __add__(self, other: "int | TruncatingInt") -> "TruncatingInt":
        return TruncatingInt(self.value + int(other))

    def __floordiv__(self, other: int) -> "TruncatingInt":
        return TruncatingInt(int(self.value / other))

    def __mod__(self, other: int) -> "TruncatingInt":
        return TruncatingInt(self.value - int(self.value / other) * other)

    def __int__(self) -> int:
        return self.value

    def __eq__(self, other: object) -> bool:
        return self.value == int(other)

    def __le__(self, other: "int | TruncatingInt") -> bool:
        return self.value <= int(other)

    def __lt__(self, other: "int | TruncatingInt") -> bool:
        return self.value < int(other)

    def __ge__(self, other: "int | TruncatingInt") -> bool:
        return self.value >= int(other)

    def __gt__(self, other: "int | TruncatingInt") -> bool:
        return self.value > int(other)


@pytest.mark.parametrize(("kind", "wrap"), ALL_RULES)
def test_rules_do_not_depend_on_how_division_rounds(kind, wrap):
    pattern = Pattern(kind, 4, 5, 6, 5, wrap)
    positions = [TruncatingInt(i) for i in range(pattern.seq_len)]
    mask = [[attends(pattern, q, k) for k in positions] for q in positions]
    assert torch.equal(torch.tensor(mask), dense_mask(pattern))


# grid, kind -> pairs, blocks of 64x64 that hold at least one pair; column blocks in raster order.
COUNTS = {
    (32, "causal"): (819_840, 210),
    (32, "row"): (328_304, 105),
    (32, "column"): (311_936, 210),
    (32, "conv"): (352_209, 132),
    (64, "causal"): (9_472_128, 2_346),
    (64, "row"): (1_345_632, 393),
    (64, "column"): (1_214_592, 2_346),
    (64, "conv"): (1_320_753, 693),
    (128, "row"): (6_332_480, 1_799),
    (128, "conv"): (5_205_489, 4_040),
}


def count(pattern: Pattern, block: int = 64) -> tuple[int, int]:
    """Pairs and touched blocks, a block row of queries at a time against the text and the image keys within reach."""
    positions = torch.arange(pattern.seq_len, dtype=torch.int32)
    reach = pattern.image_len if pattern.reach is None else pattern.reach
    pairs = blocks = 0
    for start in range(0, pattern.seq_len, block):
        first = max(pattern.text_len, (start - reach) // block * block)
        keys = torch.cat([positions[: pattern.text_len], positions[first : start + block]])
        mask = attends(pattern, positions[start : start + block, None], keys)
        pairs += int(mask.sum())
        blocks += int(mask.any(dim=0).view(-1, block).any(dim=1).sum())
    return pairs, blocks


@pytest.mark.parametrize(("grid", "kind"), COUNTS)
def test_pairs_and_blocks(grid, kind):
    assert count(Pattern(kind, 256, grid, grid)) == COUNTS[grid, kind]


@pytest.mark.parametrize(("grid", "pairs", "blocks"), [(32, 311_936, 90), (64, 1_214_592, 330)])
def test_column_blocks_in_column_order(grid, pairs, blocks):
    raster = torch.arange(grid * grid).view(grid, grid)
    order = torch.cat([torch.arange(256), 256 + raster.T.flatten()])
    mask = dense_mask(Pattern("column", 256, grid, grid))[order][:, order]
    assert int(mask.sum()) == pairs
    assert int(mask.view(len(order) // 64, 64, -1, 64).any(3).any(1).sum()) == blocks


def test_prefix_lengths_hide_text_from_image_queries_only():
    pattern = Pattern("row", 4, 2, 3)
    positions = torch.arange(pattern.seq_len)
    masks = attention_mask(pattern, positions, positions, torch.tensor([0, 3, 4], dtype=torch.int32))
    assert masks.shape == (3, 1, 10, 10)
    full = dense_mask(pattern)
    for mask, length in zip(masks[:, 0], (0, 3, 4), strict=True):
        expected = full.clone()
        expected[4:, length:4] = False
        assert torch.equal(mask, expected)


def test_attends_broadcasts_and_agrees_with_the_dense_mask():
    pattern = Pattern("conv", 3, 4, 5, 3)
    positions = torch.arange(pattern.seq_len)
    assert attends(pattern, positions[:, None, None], positions[None, :3, None]).shape == (23, 3, 1)
    assert torch.equal(attends(pattern, torch.tensor(17), positions), dense_mask(pattern)[17])


def test_lengths_and_hash():
    pattern = Pattern("conv", 6, 4, 5)
    assert (pattern.image_len, pattern.seq_len, pattern.half) == (20, 26, 5)
    assert len({pattern, replace(pattern), replace(pattern, conv_wrap="modulo")}) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "diagonal"}, "unknown kind 'diagonal', expected one of causal, row, column, conv"),
        ({"conv_wrap": "mirror"}, "unknown conv_wrap 'mirror', expected one of linear, clamped, modulo"),
        ({"text_len": 0}, "text_len is 0, expected a whole number of at least 1"),
        ({"width": 2.5}, "width is 2.5, expected a whole number of at least 1"),
        ({"width": True}, "width is True, expected a whole number of at least 1"),
        ({"height": 0}, "height is 0, expected a whole number of at least 1"),
        ({"width": -3}, "width is -3, expected a whole number of at least 1"),
        ({"conv_kernel": 10}, "conv_kernel is 10, expected an odd number"),
        ({"conv_kernel": -1}, "conv_kernel is -1, expected a whole number of at least 1"),
    ],
)
def test_bad_patterns_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(Pattern("row", 6, 4, 4), **change)


@pytest.mark.parametrize(("kind", "wrap"), RULES)
@pytest.mark.parametrize(("height", "width", "kernel"), [(7, 5, 3), (5, 12, 5), (3, 4, 11), (1, 9, 3), (9, 1, 3)])
def test_what_a_rule_has_to_promise(kind, wrap, height, width, kernel):
    """It shows each query itself, none of its future, nothing beyond its reach, and looks alike as far as it says."""
    pattern = Pattern(kind, 1, height, width, kernel, wrap or "linear")
    positions = torch.arange(pattern.image_len)
    q, k = positions[:, None], positions[None, :]
    seen = pattern.rule.allows(q, k, width, pattern.half)
    assert seen.diagonal().all()
    assert not (seen & (k > q)).any()
    if pattern.reach is not None:
        assert not (seen & (q - k > pattern.reach)).any()
        step = 1 if pattern.rule.by_offset else width
        assert torch.equal(seen[step:, step:], seen[:-step, :-step])
