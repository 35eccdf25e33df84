import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rism.runtime.errors import InputError
from rism.runtime.images import FORMATS, SUFFIXES, ImageSource, load_image


def encode(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A valid PNG that claims to be of this size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + data + chunk(b"IEND", b"")


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["path", "str", "bytes", "file", "pil", "array"])
def test_every_kind_of_source(picture: np.ndarray, tmp_path: Path, kind: str) -> None:
    data = encode(Image.fromarray(picture))
    file = tmp_path / "p.png"
    file.write_bytes(data)
    sources: dict[str, ImageSource] = {
        "path": file,
        "str": str(file),
        "bytes": data,
        "file": io.BytesIO(data),
        "pil": Image.fromarray(picture),
        "array": picture,
    }
    loaded = load_image(sources[kind])
    assert loaded.dtype == np.uint8
    assert loaded.flags.c_contiguous
    np.testing.assert_array_equal(loaded, picture)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"image '.*none.png' is not there: check the path"):
        load_image(tmp_path / "none.png")
    with pytest.raises(InputError, match=r"cannot be opened: Is a directory"):
        load_image(tmp_path)
    with pytest.raises(InputError, match="cannot be opened: embedded null"):
        load_image("a\0b")


@pytest.mark.parametrize(
    "data", [b"", b"hello, I am no picture", b"%PDF-1.7", b"\x89PNG\r\n\x1a\n"]
)
def test_not_a_picture(data: bytes) -> None:
    with pytest.raises(InputError, match="expected PNG, JPEG, WEBP, BMP, TIFF, GIF: convert it"):
        load_image(data)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_truncated(form: str) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), form)
    with pytest.raises(InputError) as error:
        load_image(data[: len(data) // 2])
    assert "damaged or cut short" in str(error.value) or "not a picture" in str(error.value)


@pytest.mark.parametrize("side", [9_000, 12_000, 50_000])
@pytest.mark.filterwarnings("error")
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    with pytest.raises(InputError, match="expected at most 64 megapixels: make it smaller"):
        load_image(png_header(side, side))


def test_the_limit_holds_for_every_source(picture: np.ndarray) -> None:
    for source in (picture, Image.fromarray(picture), encode(Image.fromarray(picture))):
        with pytest.raises(InputError, match=r"has 30 x 20 pixels, expected at most 0.0005 mega"):
            load_image(source, max_pixels=500)


def test_one_pixel() -> None:
    assert load_image(encode(Image.new("RGB", (1, 1), (9, 8, 7)))).tolist() == [[[9, 8, 7]]]


def test_cmyk() -> None:
    data = encode(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF")
    np.testing.assert_array_equal(load_image(data), np.full((4, 4, 3), (255, 0, 0), np.uint8))
    red, green, blue = load_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))[4, 4]
    assert red > 250
    assert max(green, blue) < 6


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    assert load_image(encode(image)).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    assert load_image(encode(image, transparency=1)).tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled_not_clipped(form: str) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    loaded = load_image(encode(Image.fromarray(values), form))
    np.testing.assert_array_equal(loaded[0, :, 0], [0, 0, 1, 1, 128, 255])
    assert loaded.shape == (1, 6, 3)


def test_deeper_pixels_are_refused() -> None:
    deep = encode(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF")
    with pytest.raises(InputError, match="has 32-bit pixels, expected 8 or 16 bits"):
        load_image(deep)
    with pytest.raises(InputError, match="has floating-point pixels, expected 8 or 16 bits"):
        load_image(encode(Image.new("F", (2, 2)), "TIFF"))


def test_transparency_is_over_white() -> None:
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert load_image(encode(half)).tolist() == [[[127, 127, 127]]]
    assert load_image(encode(Image.new("LA", (1, 1), (0, 0)))).tolist() == [[[255, 255, 255]]]
    rgba = np.array([[[1, 2, 3, 0], [1, 2, 3, 255]]], np.uint8)
    assert load_image(rgba).tolist() == [[[255, 255, 255], [1, 2, 3]]]


def test_one_bit() -> None:
    assert load_image(encode(Image.new("1", (1, 1), 1))).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(form: str, orientation: int) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255  # the white corner is top left, whatever the file's order
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = load_image(encode(stored, form, exif=exif))
    assert loaded.shape == upright.shape
    assert np.abs(loaded.astype(int) - upright).max() < 90
    assert np.abs(loaded.astype(int) - upright).mean() < 2


def test_broken_exif_does_not_matter(picture: np.ndarray) -> None:
    data = encode(Image.fromarray(picture), "JPEG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")
    assert load_image(data).shape == picture.shape


def test_the_first_frame_of_several() -> None:
    frames = [Image.new("RGB", (2, 2), c) for c in ((255, 0, 0), (0, 0, 255))]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)]
)
def test_arrays_of_another_kind(array: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"cannot be used, expected \(H, W\), .* uint8 in RGB"):
        load_image(array)


def test_empty_array() -> None:
    with pytest.raises(InputError, match="is 0 x 4 pixels, expected at least 1 x 1"):
        load_image(np.zeros((4, 0, 3), np.uint8))


def test_other_objects() -> None:
    with pytest.raises(InputError, match="an image of type int cannot be read, expected a path"):
        load_image(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="open as text, expected binary"):
        load_image(io.StringIO("x"))  # type: ignore[arg-type]


def test_folders_are_searched_for_every_ending_of_what_is_read() -> None:
    endings = Image.registered_extensions().items()
    assert {suffix for suffix, kind in endings if kind in (*FORMATS, "MPO")} <= set(SUFFIXES)
