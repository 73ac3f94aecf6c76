import pytest

from batching import batches_of


@pytest.mark.parametrize(
    ("runs", "batch_size", "sizes"),
    [
        ([4] * 10, 32, [20, 20]),  # five captions each, and not eight and two
        ([4] * 11, 32, [24, 20]),
        ([4] * 17, 32, [24, 24, 20]),
        ([4] * 3, 5, [4, 4, 4]),
        ([1] * 100, 64, [50, 50]),
        ([8], 8, [8]),
        ([33], 32, [17, 16]),  # alone, as it does not fit
        ([2, 2, 9, 9, 2], 4, [4, 3, 3, 3, 3, 3, 3, 2]),
        ([1, 4, 4, 4, 4, 4, 4], 12, [9, 8, 8]),  # of the first, the others were there already
        ([1], 1, [1]),
    ],
)
def test_batches_are_of_whole_captions_and_about_equal(runs, batch_size, sizes):
    captions = [f"caption {number}" for number, run in enumerate(runs) for _ in range(run)]
    batches = batches_of(captions, batch_size)
    assert [batch.stop - batch.start for batch in batches] == sizes
    assert [caption for batch in batches for caption in captions[batch]] == captions
