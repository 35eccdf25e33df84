"""Reading of images of any kind as 8-bit RGB."""

import io
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from rism.runtime.arrays import Uint8
from rism.runtime.errors import InputError, one_line
from rism.runtime.image.formats import (
    AVIF_BRANDS,
    MAX_FILE_BYTES,
    brands,
    decode_low_bytes,
    has_deep_colours,
    mend_tiff,
    open_heic,
    white_is_zero,
    without_text,
)

ImageSource: TypeAlias = str | Path | bytes | BinaryIO | Image.Image | Uint8
"""A path, the bytes of a file or an open binary file, which are turned upright by their EXIF; or a
PIL image or a uint8 array, which are taken as they are. See `load_image`."""

SUFFIXES = (
    *(".apng", ".avif", ".avifs", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jfif", ".jpe"),
    *(".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"),
)
"""File name suffixes of images in lower case, to list folders; the content decides the format."""
MAX_PIXELS = 64_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIC")
_APPLE_DOUBLE = b"\x00\x05\x16\x07"
_ORIENTATION_TAG = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Uint8:
    """Read an image as 8-bit RGB.

    - EXIF: a path, bytes and an open file are turned upright as their EXIF says. A PIL image and
      an array are taken as they are: the caller may have turned or cropped them.
      `PIL.ImageOps.exif_transpose` turns a PIL image upright.
    - Depth: gray and colours of more than 8 bits are scaled by their range, to
      round(value * 255 / (2^b - 1)), where b is the number of bits of the largest value, 8 or
      more. So 4095 is white in an image of 12 bits, stored in 16 or in 32.
    - Colour: palettes and CMYK are converted, transparency is laid over white, colour profiles
      are not applied.

    >>> load_image("street.jpg").shape
    (480, 640, 3)

    Args:
        source: a path, the bytes of a file, an open binary file, a PIL image, or an array
            (H, W), (H, W, 3) or (H, W, 4) of uint8 in RGB(A) order. Files may be PNG, JPEG,
            WebP, BMP, TIFF or GIF, AVIF where Pillow reads it (11.3 or newer) and HEIC where
            pillow-heif is installed; of several frames the first is read.
        max_pixels: refuse larger images, judged by the header before anything is decoded.

    Returns:
        (H, W, 3) uint8, C-contiguous.

    Raises:
        InputError: the file is missing, not an image, damaged, too large or of a kind that cannot
            be read here, or the array has another shape.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        return _decode(source, None, "the image", max_pixels)
    name = f"'{one_line(source)}'" if isinstance(source, (str, Path)) else "the image"
    with _open_data(source, name) as data, open_image(data, name) as image:
        return _decode(image, data, name, max_pixels)


def open_image(data: BinaryIO, name: str) -> Image.Image:
    """Open an image file by its header: its size is known, its pixels are not decoded yet.

    `PIL.Image.open` is not used: it warns of sizes that are refused here anyway, and hides why a
    file cannot be read. `data` can seek and is at its beginning; the caller closes it.

    Raises:
        InputError: it is empty, not an image, damaged, or of a kind that cannot be read here.
    """
    head = data.read(256)
    data.seek(0)
    if not head:
        raise InputError(f"{name} is empty (0 bytes): get the file again")
    if head.startswith(_APPLE_DOUBLE):
        raise InputError(
            f"{name} is not an image but metadata that macOS keeps about one: use the file of that "
            "name without '._'"
        )
    try:
        # The common formats first: reading the rest of Pillow's takes longer than many an image.
        Image.preinit()
        image = _by_pillow(data, head)
        if image is None:
            Image.init()
            boxes = head[4:8] == b"ftyp"
            image = _open_boxes(data, head, name) if boxes else _by_pillow(data, head)
        if image is not None:
            if image.format == "TIFF":
                mend_tiff(image)
            return image
        reason = ""
    except InputError:
        raise
    except Exception as error:  # decoders raise any error on a hostile header
        reason = f" ({one_line(error, limit=80)})"
    raise InputError(
        f"{name} is not an image rism can read, expected {', '.join(FORMATS)}: "
        f"convert it first{reason}"
    )


def _by_pillow(data: BinaryIO, head: bytes) -> Image.Image | None:
    for form in FORMATS:
        factory, accept = Image.OPEN.get(form, (None, None))
        if factory is None or accept is None or accept(head[:16]) is not True:
            continue
        return factory(without_text(data) if form == "PNG" else data, "")
    return None


def _open_boxes(data: BinaryIO, head: bytes, name: str) -> Image.Image | None:
    """Open AVIF or HEIC."""
    if not brands(head) & AVIF_BRANDS:
        return open_heic(data, head, name)
    image = _by_pillow(data, head)
    if image is None:
        raise InputError(
            f"{name} is an AVIF image, which this Pillow cannot read: "
            "pip install -U 'pillow>=11.3', or convert it to PNG or JPEG"
        )
    return image


def pixel_count(file: Path) -> int:
    """Return the number of pixels of an image file by its header; 0 if it cannot be read."""
    if not file.is_file():  # a pipe can be read once
        return 0
    try:
        with file.open("rb") as data, open_image(data, "the image") as image:
            return image.width * image.height
    except (OSError, InputError):  # `load_image` reports it
        return 0


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image, 1 to 8; 1 without a valid one.

    After loading, that of a TIFF is 1: Pillow has turned it.
    """
    try:
        found = int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # unreadable EXIF does not matter
        return 1
    return found if found in _TRANSPOSE else 1


def _open_data(source: str | Path | bytes | BinaryIO, name: str) -> BinaryIO:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if isinstance(source, (str, Path)):
        file = _open_file(source, name)
        if file.seekable():
            return file
        with file:
            return _in_memory(file)
    if not hasattr(source, "read"):
        raise InputError(
            f"an image of type {type(source).__name__} cannot be read, expected a path, bytes, "
            "a binary file, a PIL image or a uint8 array"
        )
    return _in_memory(source)


def _open_file(path: str | Path, name: str) -> BinaryIO:
    try:
        return Path(path).open("rb")
    except FileNotFoundError:
        raise InputError(f"image {name} is not there: check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"image {name} cannot be opened: {one_line(reason)}") from None


def _in_memory(source: BinaryIO) -> BinaryIO:
    data = source.read(MAX_FILE_BYTES + 1)
    if not isinstance(data, bytes):
        raise InputError("the image file is open as text, expected binary: open it with 'rb'")
    if len(data) > MAX_FILE_BYTES:
        raise InputError("the image file is larger than 512 MiB: make it smaller first")
    return io.BytesIO(data)


def _from_array(array: Uint8, max_pixels: int) -> Uint8:
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not shaped:
        raise InputError(
            f"an image array of shape {array.shape} and dtype {array.dtype} cannot be used, "
            "expected (H, W), (H, W, 3) or (H, W, 4) uint8 in RGB order: for floats in [0, 1] "
            "pass (x * 255).round().astype('uint8')"
        )
    _check_size((array.shape[1], array.shape[0]), "the image", max_pixels)
    if array.ndim == 3 and array.shape[2] == 3:
        return np.ascontiguousarray(array)
    return _decode(Image.fromarray(np.ascontiguousarray(array)), None, "the image", max_pixels)


def _check_size(size_wh: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size_wh
    if width < 1 or height < 1:
        raise InputError(f"{name} is {width} x {height} pixels, expected at least 1 x 1")
    if width * height > max_pixels:
        raise InputError(
            f"{name} has {width} x {height} pixels, expected at most {max_pixels / 1e6:g} "
            "megapixels: make it smaller first (results do not need more)"
        )


def _decode(image: Image.Image, data: BinaryIO | None, name: str, max_pixels: int) -> Uint8:
    """Decode an image of a file (`data`), or one that the caller opened (None)."""
    _check_size(image.size, name, max_pixels)
    try:
        deep, inverted = data is not None and has_deep_colours(image), white_is_zero(image)
        image.load()
        _check_size(image.size, name, max_pixels)
        orientation = 1 if data is None else exif_orientation(image)
        if deep and data is not None:
            image = _deep_colours(image, data, name)
        rgb = _to_rgb(image, name, inverted=data is not None and inverted)
        if orientation in _TRANSPOSE:
            rgb = rgb.transpose(_TRANSPOSE[orientation])
        return np.array(rgb, dtype=np.uint8)
    except InputError:
        raise
    except Exception as error:  # decoders raise any error on damaged data
        raise InputError(
            f"{name} is damaged or cut short, it could not be decoded "
            f"({one_line(error, limit=80)}): get the file again"
        ) from None


def _to_rgb(image: Image.Image, name: str, *, inverted: bool) -> Image.Image:
    if image.mode.startswith("I"):
        image = _deep_gray(image, name, inverted=inverted)
    if image.mode == "F":
        raise InputError(
            f"{name} has floating-point pixels, expected 8 or 16 bits: convert it first"
        )
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _deep_gray(image: Image.Image, name: str, *, inverted: bool) -> Image.Image:
    """Scale gray of up to 31 bits to 8, by its range."""
    values = np.asarray(image)
    if values.min() < 0:
        raise InputError(
            f"{name} has negative pixels (or unsigned ones of 32 bits), expected 0 or more: "
            "convert it to 8 or 16 bits first"
        )
    scaled = _to_8_bits(values, int(values.max()).bit_length())
    if inverted:
        scaled = 255 - scaled
    if "transparency" in image.info:
        scaled[values == image.info["transparency"]] = 255
    return Image.fromarray(scaled)


def _deep_colours(image: Image.Image, data: BinaryIO, name: str) -> Image.Image:
    """Scale 16-bit colours, of which `image` has the upper 8 bits, by their range."""
    if "transparency" in image.info:
        image.info["transparency"] = tuple(value >> 8 for value in image.info["transparency"])
    upper = np.asarray(image)
    brightest = int(upper[..., :3].max())
    if brightest >= 128:
        return image
    data.seek(0)
    with open_image(data, name) as again:
        low = decode_low_bytes(again)
        lower = None if low is None else np.asarray(low)
    if lower is not None:
        values = upper.astype(np.uint16) << 8 | lower
    elif brightest == 0 or brightest >= 16:
        values = upper.astype(np.uint16) * 257
    else:
        raise InputError(
            f"{name} has 16-bit colours of which only the lower 12 are used: "
            "scale them to 8 bits first"
        )
    bits = int(values[..., :3].max()).bit_length()
    scaled = _to_8_bits(values, bits)
    if image.mode == "RGBA":
        # Opaque is mostly 65535, whatever range the colours have.
        alpha = values[..., 3]
        scaled[..., 3] = _to_8_bits(alpha, max(bits, int(alpha.max()).bit_length()))
    found = Image.fromarray(scaled)
    found.info = image.info
    return found


def _to_8_bits(values: npt.NDArray[np.integer[Any]], bits: int) -> Uint8:
    """Return round(x * 255 / (2^bits - 1)) for 8 bits or more; of more than 16 the upper 16."""
    bits = max(bits, 8)
    table = np.arange(2**16)
    white = 2 ** min(bits, 16) - 1
    table = np.minimum((table * 255 + white // 2) // white, 255).astype(np.uint8)
    return np.asarray(table[values >> max(bits - 16, 0)])
