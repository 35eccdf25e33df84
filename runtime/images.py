"""Pictures in, 8-bit RGB out: everything that can be odd about a file ends at this door."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from rism.runtime.errors import InputError, one_line

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "SUFFIXES",
    "ImageSource",
    "load_image",
    "pixel_count",
    "quiet",
]

ImageSource: TypeAlias = str | Path | bytes | BinaryIO | Image.Image | npt.NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jfif", ".jpe", ".jpeg", ".jpg"),
    *(".mpo", ".png", ".tif", ".tiff", ".webp"),
)
"""How names of image files end, in lower case, for listing folders; contents are what counts."""
MAX_PIXELS = 64_000_000
_MAX_FILE_BYTES = 2**29
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


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Read a picture as 8-bit RGB, upright, transparency over white.

    Args:
        source: a path, the bytes of a file, an open binary file, a PIL image, or an array
            (H, W), (H, W, 3) or (H, W, 4) of uint8 in RGB(A) order. Files may be PNG, JPEG,
            WebP, BMP, TIFF or GIF; of several frames the first is read.
        max_pixels: refuse larger pictures, judged by the header before anything is decoded.

    Returns:
        (H, W, 3) uint8, C-contiguous. EXIF orientation is applied, 16-bit gray is scaled to
        8 bits, CMYK and palettes are converted; colour profiles are not applied.

    Raises:
        InputError: the file is missing, not a picture, damaged, or too large, or the array is
            not of one of the shapes above.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        _check_size(source.size, "the image", max_pixels)
        return _decode(source, "the image")
    name = f"'{one_line(source)}'" if isinstance(source, (str, Path)) else "the image"
    data = _open_data(source, name)
    with data, quiet():
        try:
            image: Image.Image = Image.open(data, formats=FORMATS)
        except Image.DecompressionBombError:
            raise InputError(
                _too_large(name, "more pixels than Pillow opens", max_pixels)
            ) from None
        except Exception as error:  # decoders raise whatever they stumble on in a hostile header
            raise InputError(
                f"{name} is not a picture rism can read, expected {', '.join(FORMATS)}: "
                f"convert it first ({one_line(error, limit=80)})"
            ) from None
        with image:
            _check_size(image.size, name, max_pixels)
            return _decode(image, name)


def pixel_count(file: Path) -> int:
    """Return how many pixels a picture has by its header; 0 where it has none to be read."""
    with quiet():
        try:
            with Image.open(file, formats=FORMATS) as image:
                return image.width * image.height
        except Exception:  # `load_image` says what is wrong
            return 0


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow: the size limit is ours, and what it says of odd metadata helps nobody.

    Warnings have one list of filters for all threads. Whoever reads pictures in several holds
    this around them, so that none of them takes it from another.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def _open_data(source: str | Path | bytes | BinaryIO, name: str) -> BinaryIO:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if isinstance(source, (str, Path)):
        try:
            return Path(source).open("rb")
        except FileNotFoundError:
            raise InputError(f"image {name} is not there: check the path") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"image {name} cannot be opened: {one_line(reason)}") from None
    if not hasattr(source, "read"):
        raise InputError(
            f"an image of type {type(source).__name__} cannot be read, expected a path, bytes, "
            "a binary file, a PIL image or a uint8 array"
        )
    data = source.read(_MAX_FILE_BYTES + 1)
    if not isinstance(data, bytes):
        raise InputError("the image file is open as text, expected binary: open it with 'rb'")
    if len(data) > _MAX_FILE_BYTES:
        raise InputError("the image file is larger than 512 MiB: make it smaller first")
    return io.BytesIO(data)


def _from_array(array: npt.NDArray[np.uint8], max_pixels: int) -> npt.NDArray[np.uint8]:
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
    return _decode(Image.fromarray(np.ascontiguousarray(array)), "the image")


def _check_size(size_wh: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size_wh
    if width < 1 or height < 1:
        raise InputError(f"{name} is {width} x {height} pixels, expected at least 1 x 1")
    if width * height > max_pixels:
        raise InputError(_too_large(name, f"{width} x {height} pixels", max_pixels))


def _too_large(name: str, found: str, max_pixels: int) -> str:
    return (
        f"{name} has {found}, expected at most {max_pixels / 1e6:g} megapixels: make it smaller "
        "first (results do not need more)"
    )


def _decode(image: Image.Image, name: str) -> npt.NDArray[np.uint8]:
    try:
        image.load()
        orientation = _orientation(image)
        rgb = _to_rgb(image, name)
        if orientation in _TRANSPOSE:
            rgb = rgb.transpose(_TRANSPOSE[orientation])
        return np.array(rgb, dtype=np.uint8)
    except InputError:
        raise
    except Exception as error:  # decoders raise whatever they stumble on in damaged data
        raise InputError(
            f"{name} is damaged or cut short, it could not be decoded "
            f"({one_line(error, limit=80)}): get the file again"
        ) from None


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation after loading (TIFF applies and removes its own)."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # unreadable EXIF says nothing about the pixels
        return 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):
        image = _gray_16_to_8(image, name)
    if image.mode == "F":
        raise InputError(
            f"{name} has floating-point pixels, expected 8 or 16 bits: convert it first"
        )
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _gray_16_to_8(image: Image.Image, name: str) -> Image.Image:
    """Scale 16-bit gray to 8 bits: round(x / 257), so that 65535 becomes 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(f"{name} has 32-bit pixels, expected 8 or 16 bits: convert it first")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
