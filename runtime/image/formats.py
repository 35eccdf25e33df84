"""Corrections for image files that Pillow cannot open, limits, or silently misreads."""

import io
import struct
import sys
import zlib
from typing import Any, BinaryIO

from PIL import Image

from rism.runtime.errors import InputError

MAX_FILE_BYTES = 2**29
AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
# Chunks of a PNG that do not change its pixels, and the two texts that may hold an orientation.
_TEXT = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")
_TURNING = (b"Raw profile type exif", b"XML:com.adobe.xmp")
_MAX_TEXT_BYTES = 2**20
# Tags of TIFF.
_BITS, _PHOTOMETRIC, _SAMPLES, _PLANAR, _SAMPLE_FORMAT, _SUBSAMPLING = 258, 262, 277, 284, 339, 530


def brands(head: bytes) -> set[bytes]:
    """Return the brands in the first box of an AVIF or HEIC file; both are boxes as in MP4."""
    length = min(int.from_bytes(head[:4]), len(head))
    return {head[at : at + 4] for at in (8, *range(16, length, 4))}


def open_heic(data: BinaryIO, head: bytes, name: str) -> Image.Image | None:
    """Open a HEIC file with pillow-heif; None if it is no HEIC.

    Raises:
        InputError: the package is not installed.
    """
    if not brands(head) & _HEIC:
        return None
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise InputError(
            f"{name} is a HEIC image, which needs one more package: "
            "pip install pillow-heif, or convert it to PNG or JPEG"
        ) from None
    opened: Image.Image = HeifImageFile(data)  # type: ignore[no-untyped-call]
    return opened


def without_text(data: BinaryIO) -> BinaryIO:
    """Remove a PNG's colour profile and texts: they are not used, and Pillow limits their size.

    Raises:
        InputError: the rest is larger than 512 MiB.
    """
    kept: list[tuple[int, int]] = []
    start, at, size = 0, 8, data.seek(0, io.SEEK_END)
    while at < size:
        data.seek(at)
        length, kind = struct.unpack(">I4s", data.read(8).ljust(8, b"\0"))
        end = min(at + 12 + length, size)
        if kind in _TEXT and not _may_turn(kind, data, length):
            kept.append((start, at))
            start = end
        at = end
    data.seek(0)
    if not kept:
        return data
    kept.append((start, size))
    if sum(end - begin for begin, end in kept) > MAX_FILE_BYTES:
        raise InputError("the image file is larger than 512 MiB: make it smaller first")
    pieces = io.BytesIO()
    for begin, end in kept:
        data.seek(begin)
        pieces.write(data.read(end - begin))
    pieces.seek(0)
    return pieces


def _may_turn(kind: bytes, data: BinaryIO, length: int) -> bool:
    """Return whether a text may hold EXIF or XMP, and is of a size that Pillow takes."""
    if kind == b"iCCP" or length > _MAX_TEXT_BYTES:
        return False
    keyword, _, text = data.read(length).partition(b"\0")
    if keyword not in _TURNING:
        return False
    if kind == b"iTXt":
        return text[:1] == b"\0"  # XMP is not compressed, by its own rules
    if kind == b"tEXt":
        return True
    try:
        return len(zlib.decompressobj().decompress(text[1:], _MAX_TEXT_BYTES)) < _MAX_TEXT_BYTES
    except zlib.error:
        return False


def mend_tiff(image: Image.Image) -> None:
    """Refuse or correct a TIFF that Pillow would silently misread.

    Raises:
        ValueError: it cannot be corrected.
    """
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits, planes_apart = max(tags.get(_BITS, (1,))), tags.get(_PLANAR, 1) == 2
    raw = image.info.get("compression") == "raw"
    if bits == 8 and 2 in tags.get(_SAMPLE_FORMAT, (1,)):
        raise ValueError("a TIFF with signed 8-bit values")
    if raw and tags.get(_PHOTOMETRIC) == 6 and tags.get(_SUBSAMPLING, (2, 2)) != (1, 1):
        raise ValueError("an uncompressed TIFF with subsampled YCbCr colours")
    if not planes_apart or tags.get(_SAMPLES, 1) == 1:
        return
    if image.mode not in ("RGB", "RGBA", "CMYK") or (raw and bits == 16 and image.mode == "CMYK"):
        raise ValueError(f"a TIFF with {image.mode} pixels in separate planes")
    if raw and bits == 16:
        order = "B" if tags.prefix == b"MM" else "L"
        image.tile = [  # type: ignore[attr-defined]
            _with_raw_mode(tile, f"{_raw_mode(tile)};16{order}") for tile in _tiles(image)
        ]


def white_is_zero(image: Image.Image) -> bool:
    """Return whether an opened TIFF of 16-bit gray has white at zero, which Pillow ignores."""
    tags = getattr(image, "tag_v2", {})
    return image.mode.startswith("I") and tags.get(_PHOTOMETRIC) == 0


def has_deep_colours(image: Image.Image) -> bool:
    """Return whether an opened file has 16-bit colours, of which Pillow decodes the upper bytes."""
    return image.mode in ("RGB", "RGBA") and any(";16" in _raw_mode(tile) for tile in _tiles(image))


def decode_low_bytes(image: Image.Image) -> Image.Image | None:
    """Have an opened file with 16-bit colours decode the lower 8 bits; None if impossible.

    The byte order of the decoder is reversed.
    """
    tags = getattr(image, "tag_v2", {})
    native = "L" if sys.byteorder == "little" else "B"
    tiles = []
    for tile in _tiles(image):
        bands, _, order = _raw_mode(tile).partition(";16")
        # libtiff reads separate planes in the byte order of this machine, whatever it is given.
        separate = tile[0] == "libtiff" and tags.get(_PLANAR, 1) == 2
        if separate or bands not in ("RGB", "RGBA", "RGBX", "R", "G", "B", "A"):
            return None
        other = "B" if order.replace("N", native) == "L" else "L"
        tiles.append(_with_raw_mode(tile, f"{bands};16{other}"))
    image.tile = tiles  # type: ignore[attr-defined]
    return image


def _tiles(image: Image.Image) -> list[Any]:
    return list(getattr(image, "tile", []))


def _raw_mode(tile: Any) -> str:
    args = tile[3]
    return str(args[0] if isinstance(args, tuple) and args else args)


def _with_raw_mode(tile: Any, mode: str) -> Any:
    args = tile[3]
    changed = (*tile[:3], (mode, *args[1:]) if isinstance(args, tuple) else mode)
    # A named tuple from Pillow 11 on.
    return getattr(type(tile), "_make", tuple)(changed)
