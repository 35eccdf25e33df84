import io
import os
import struct
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from rism.runtime.errors import InputError
from rism.runtime.image.loading import FORMATS, SUFFIXES, load_image, pixel_count


def encode(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(size_wh: tuple[int, int], rows: bytes, *, bits: int = 8, colours: int = 2) -> bytes:
    """A PNG whose header is of this size, whatever its rows are."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size_wh, bits, colours, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + head + data + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def tiff(strips: list[bytes], tags: dict[int, tuple[int, ...]], order: str = "<") -> bytes:
    """An uncompressed TIFF, one strip for each of `strips`."""
    offset, places = 8, []
    for strip in strips:
        places.append(offset)
        offset += len(strip)
    tags = tags | {259: (1,), 273: tuple(places), 279: tuple(map(len, strips))}
    long, entries, after = offset + 2 + 12 * len(tags) + 4, b"", b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        entries += struct.pack(f"{order}HHI", tag, 4, len(values))
        entries += packed if len(values) == 1 else struct.pack(f"{order}I", long + len(after))
        after += b"" if len(values) == 1 else packed
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, offset)
    count = struct.pack(f"{order}H", len(tags))
    return head + b"".join(strips) + count + entries + bytes(4) + after


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_every_kind_of_source(image: np.ndarray, tmp_path: Path) -> None:
    data = encode(Image.fromarray(image))
    file = tmp_path / "p.png"
    file.write_bytes(data)
    for source in (file, str(file), data, io.BytesIO(data), Image.fromarray(image), image):
        loaded = load_image(source)
        assert loaded.dtype == np.uint8 and loaded.flags.c_contiguous
        np.testing.assert_array_equal(loaded, image)


NO_IMAGE = r"is not an image .*, GIF, AVIF, HEIC: convert it"
NO_ARRAY = r"cannot be used, expected \(H, W\), .* uint8 in RGB"
BELOW = Image.fromarray(np.array([[-1, 7]], np.int32))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("none.png", r"image 'none.png' is not there: check the path"),
        (Path(), "cannot be opened: Is a directory"),
        ("a\0b", "cannot be opened: embedded null"),
        (b"", r"is empty \(0 bytes\): get the file again"),
        (b"hello, I am no image", NO_IMAGE),
        (b"%PDF-1.7", NO_IMAGE),
        (b"\x89PNG\r\n\x1a\n", NO_IMAGE),
        (b"\0\0\0\x14ftypisom" + bytes(99), NO_IMAGE),
        (np.zeros((4, 4, 3), np.float32), NO_ARRAY),
        (np.zeros((4, 4, 2), np.uint8), NO_ARRAY),
        (np.zeros(4, np.uint8), NO_ARRAY),
        (np.zeros((4, 0, 3), np.uint8), "is 0 x 4 pixels, expected at least 1 x 1"),
        (3, "an image of type int cannot be read, expected a path"),
        (io.StringIO("x"), "open as text, expected binary"),
        (encode(BELOW, "TIFF"), r"has negative pixels .*, expected 0 or more"),
        (encode(Image.new("F", (2, 2)), "TIFF"), "has floating-point pixels, expected 8 or 16"),
    ],
)
def test_what_is_no_image(source: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        load_image(source)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_truncated(form: str) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), form)
    with pytest.raises(InputError, match=r"damaged or cut short|not an image"):
        load_image(data[: len(data) // 2])


@pytest.mark.parametrize("side", [9_000, 50_000])
@pytest.mark.filterwarnings("error")
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    with pytest.raises(InputError, match="expected at most 64 megapixels: make it smaller"):
        load_image(png((side, side), b"\0" * 64))


def test_the_limit_holds_for_every_source(image: np.ndarray) -> None:
    for source in (image, Image.fromarray(image), encode(Image.fromarray(image))):
        with pytest.raises(InputError, match=r"has 30 x 20 pixels, expected at most 0.0005 mega"):
            load_image(source, max_pixels=500)


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


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 2048, 4095], [0, 128, 255]),  # 12 bits
        ([0, 100, 255], [0, 100, 255]),  # 8 bits in more
        ([0, 511, 1023], [0, 127, 255]),
        ([0, 0, 0], [0, 0, 0]),
    ],
)
def test_gray_is_scaled_by_its_range(
    dtype: type[np.generic], values: list[int], expected: list[int]
) -> None:
    image = Image.fromarray(np.array([values], dtype))
    for source in (image, encode(image, "TIFF")):
        assert load_image(source)[0, :, 0].tolist() == expected


def test_deeper_pixels() -> None:
    deep = Image.fromarray(np.array([[0, 70_000, 2**17 - 1]], np.int32))
    assert load_image(encode(deep, "TIFF"))[0, :, 0].tolist() == [0, 136, 255]


COLOURS = np.array([[[0, 1000, 4095], [2048, 16, 15]]], np.uint16)  # of 12 bits
COLOURS_8 = [[[0, 62, 255], [128, 1, 1]]]


def test_colours_are_scaled_by_their_range() -> None:
    opaque = np.concatenate([COLOURS, np.full((1, 2, 1), 65535, np.uint16)], axis=2)
    plain = png((2, 1), b"\0" + COLOURS.astype(">u2").tobytes(), bits=16)
    assert load_image(plain).tolist() == COLOURS_8
    rgba = png((2, 1), b"\0" + opaque.astype(">u2").tobytes(), bits=16, colours=6)
    assert load_image(rgba).tolist() == COLOURS_8
    bright = (COLOURS * 16).astype(">u2")
    loaded = load_image(png((2, 1), b"\0" + bright.tobytes(), bits=16)).astype(int)
    assert np.abs(loaded - COLOURS_8).max() <= 1
    gray_alpha = np.array([[[4095, 65535], [0, 65535]]], ">u2")
    with pytest.raises(InputError, match="only the lower 12 are used: scale them"):
        load_image(png((2, 1), b"\0" + gray_alpha.tobytes(), bits=16, colours=4))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planes", [1, 2])
def test_tiff_of_sixteen_bit_colours(order: str, planes: int) -> None:
    values = (COLOURS * 16).astype(f"{order}u2")
    strips = [values.tobytes()] if planes == 1 else [values[..., c].tobytes() for c in range(3)]
    tags = {256: (2,), 257: (1,), 258: (16,) * 3, 262: (2,), 277: (3,), 278: (1,), 284: (planes,)}
    loaded = load_image(tiff(strips, tags, order)).astype(int)
    assert np.abs(loaded - COLOURS_8).max() <= 1


def test_tiff_that_pillow_reads_wrongly() -> None:
    """White is zero; signed bytes; gray and alpha in planes; subsampled colours."""
    gray = {256: (2,), 257: (1,), 258: (16,), 262: (0,), 278: (1,)}
    assert load_image(tiff([b"\0\0\xff\xff"], gray))[0, :, 0].tolist() == [255, 0]
    small = {256: (2,), 257: (2,), 258: (8, 8), 262: (1,), 277: (2,), 278: (2,)}
    for tags, strips, what in (
        (small | {258: (8,), 277: (1,), 339: (2,)}, [bytes(4)], "signed 8-bit"),
        (small | {284: (2,), 338: (2,)}, [bytes(4)] * 2, "separate planes"),
        (small | {258: (8,) * 3, 277: (3,), 262: (6,)}, [bytes(12)], "subsampled YCbCr"),
    ):
        with pytest.raises(InputError, match=f"not an image rism can read, .*{what}"):
            load_image(tiff(strips, tags))


def test_transparency_is_over_white() -> None:
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert load_image(encode(half)).tolist() == [[[127, 127, 127]]]
    assert load_image(encode(Image.new("LA", (1, 1), (0, 0)))).tolist() == [[[255, 255, 255]]]
    assert load_image(encode(Image.new("1", (1, 1), 1))).tolist() == [[[255, 255, 255]]]
    rgba = np.array([[[1, 2, 3, 0], [1, 2, 3, 255]]], np.uint8)
    assert load_image(rgba).tolist() == [[[255, 255, 255], [1, 2, 3]]]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation(form: str) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255  # the white corner is top left, whatever the file's order
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.fromarray(np.ascontiguousarray(pixels))
        loaded = load_image(encode(image, form, exif=exif))
        assert loaded.shape == upright.shape
        assert np.abs(loaded.astype(int) - upright).max() < 90
        assert np.abs(loaded.astype(int) - upright).mean() < 2


@pytest.mark.parametrize("orientation", [3, 6])
def test_an_image_in_memory_is_taken_as_it_is(image: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = Image.open(io.BytesIO(encode(Image.fromarray(image), exif=exif)))
    np.testing.assert_array_equal(load_image(opened), image)
    turned = opened.rotate(90, expand=True)  # keeps the EXIF
    np.testing.assert_array_equal(load_image(turned), np.asarray(turned))
    upright = ImageOps.exif_transpose(opened)
    np.testing.assert_array_equal(load_image(upright), load_image(encode(opened, exif=exif)))


def test_broken_exif_does_not_matter(image: np.ndarray) -> None:
    data = encode(Image.fromarray(image), "JPEG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")
    assert load_image(data).shape == image.shape


def test_the_first_frame_of_several() -> None:
    frames = [Image.new("RGB", (2, 2), c) for c in ((255, 0, 0), (0, 0, 255))]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(data)[0, 0].tolist() == [255, 0, 0]


def test_folders_are_searched_for_every_ending_of_what_is_read() -> None:
    endings = Image.registered_extensions().items()
    assert {suffix for suffix, kind in endings if kind in (*FORMATS, "MPO")} <= set(SUFFIXES)


def test_a_png_with_much_beside_its_pixels(image: np.ndarray) -> None:
    """A large colour profile and large texts, which Pillow refuses; EXIF still turns it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("prompt", "x" * 2_000_000, zip=True)
    text.add_itxt("XML:com.adobe.xmp", "x" * 2_000_000, zip=True)
    image = Image.fromarray(image)
    data = encode(image, pnginfo=text, icc_profile=bytes(3_000_000), exif=exif)
    late = data[:-12] + chunk(b"zTXt", b"late\0\0" + zlib.compress(bytes(2_000_000))) + data[-12:]
    np.testing.assert_array_equal(load_image(late), np.rot90(image, -1))
    said = Image.open(io.BytesIO(encode(image, exif=exif))).info["exif"].hex()
    raw = f"\nexif\n{len(said) // 2:8}\n{said}\n"
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", raw, zip=True)
    np.testing.assert_array_equal(load_image(encode(image, pnginfo=text)), np.rot90(image, -1))


@pytest.mark.parametrize("form", ["AVIF", "HEIF"])
def test_avif_and_heic(form: str, tmp_path: Path) -> None:
    upright = np.zeros((64, 96, 3), np.uint8)
    upright[:32, :48] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    if form == "AVIF":
        data = encode(stored, form, exif=exif)
    else:
        buffer = io.BytesIO()
        pytest.importorskip("pillow_heif").from_pillow(stored).save(buffer, exif=exif.tobytes())
        data = buffer.getvalue()
    file = tmp_path / "a.bin"
    file.write_bytes(data)
    for source in (data, file):
        loaded = load_image(source)
        assert loaded.shape == upright.shape
        assert np.abs(loaded.astype(int) - upright).mean() < 2
    assert pixel_count(file) == 64 * 96
    with pytest.raises(InputError, match=r"has .* pixels, expected at most"):
        load_image(data, max_pixels=100)


def test_avif_and_heic_without_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for brand, mend in ((b"avif", r"-U 'pillow>=11.3'"), (b"heic", "install pillow-heif")):
        with pytest.raises(InputError, match=f"image, which .*pip .*{mend}, or convert it"):
            load_image(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + bytes(40))


def test_what_lies_beside_images(tmp_path: Path) -> None:
    file = tmp_path / "._a.png"
    file.write_bytes(b"\0\5\x16\7" + bytes(4092))
    with pytest.raises(InputError, match=r"\._a.png' is not an image but metadata that macOS"):
        load_image(file)


def test_a_pipe(image: np.ndarray) -> None:
    read, write = os.pipe()
    os.write(write, encode(Image.fromarray(image)))
    os.close(write)
    assert pixel_count(Path(f"/dev/fd/{read}")) == 0
    np.testing.assert_array_equal(load_image(f"/dev/fd/{read}"), image)
    os.close(read)


def test_threads_leave_the_filters_of_warnings(image: np.ndarray) -> None:
    data, before = encode(Image.fromarray(image)), list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: load_image(data), range(200)))
    assert warnings.filters == before
