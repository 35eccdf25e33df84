import numpy as np
import pytest
from pycocotools import mask as coco

from rism.runtime.errors import InputError
from rism.runtime.result.rle import decode_rle, encode_rle


@pytest.mark.parametrize(
    ("rows", "counts"),
    [
        # Worked by hand: runs in column-major order, five bits a character from "0" on.
        (["00", "00"], "4"),
        (["11", "11"], "04"),
        (["01", "01"], "22"),
        (["10", "00"], "013"),
        # Runs 0 1 2 1: the fourth is stored as 1 - 1 = 0.
        (["10", "01"], "0120"),
        # Runs 1 2 2 1: the fourth is 1 - 2 = -1, five bits of ones, 31 + 48 = "O".
        (["010", "101"], "122O"),
        # A run of 120 is 24 with "more follows", then 3.
        (["0" * 40] * 3, "h3"),
    ],
)
def test_small_masks(rows: list[str], counts: str) -> None:
    mask = np.array([[c == "1" for c in row] for row in rows])
    assert encode_rle(mask) == counts
    assert np.array_equal(decode_rle(counts, mask.shape), mask)


def _masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (1, 300), (300, 1), (37, 53), (480, 640)]
    masks = [rng.random(size) < share for size in sizes for share in (0.0, 0.01, 0.5, 1.0)]
    # Long runs next to short ones: differences of both signs and of several characters.
    blocks = np.zeros((1000, 1200), bool)
    blocks[100:900, 300:310] = True
    blocks[5, 1100:] = True
    return [*masks, blocks, np.ones((2000, 1500), bool)]


def test_same_as_pycocotools() -> None:
    for mask in _masks():
        theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        ours = encode_rle(mask)
        assert ours == theirs["counts"].decode()
        assert np.array_equal(decode_rle(ours, mask.shape), mask)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("", "cut off"),
        ("h", "cut off"),
        ("~", "never writes"),
        (" 4", "never writes"),
        ("\N{SNOWMAN}", "ASCII"),
        ("5", "does not describe a mask of 2 x 2"),
        ("0O5", "does not describe"),
        ("P" * 40 + "0", "larger than any image"),
    ],
)
def test_a_string_that_is_no_mask(counts: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode_rle(counts, (2, 2))
