"""Image files from stores, decoded to pixels."""

import os
from collections.abc import Iterator
from pathlib import PurePosixPath
from time import perf_counter
from typing import Any

import pyarrow as pa
from pyarrow.fs import FileType

from rism.batch.tables import DECODED, Store, table
from rism.runtime.errors import InputError, one_line
from rism.runtime.image.formats import MAX_FILE_BYTES
from rism.runtime.image.loading import load_image

# A table of pixels is handed on when it is this large.
_BYTES_AT_ONCE = 8 * 2**20


def decode(batch: pa.Table, *, root: Store | None = None) -> Iterator[pa.Table]:
    """Decode images; one that cannot be read becomes a row with its error.

    Args:
        batch: columns `id` and `expressions` (lists of texts), and `image` (bytes of files) or
            `path` (paths and URLs below `root`), or both.
        root: where paths are; None if there are none.

    Yields:
        Tables with a row for each image: id, expressions, pixels (height x width x 3 bytes RGB),
        height, width, error.
    """
    rows: list[dict[str, Any]] = []
    size = 0
    for row in batch.to_pylist():
        start = perf_counter()
        made = {"id": row["id"], "expressions": row["expressions"], "error": row.get("error")}
        made["read_s"] = row.get("read_s")
        if made["error"] is None:
            try:
                data = row.get("image")
                pixels = load_image(_fetch(row.get("path"), root) if data is None else data)
                made["height"], made["width"] = pixels.shape[:2]
                made["pixels"] = pixels.tobytes()
                size += pixels.nbytes
            except InputError as error:
                made["error"] = str(error)
        made["decode_s"] = perf_counter() - start
        rows.append(made)
        if size > _BYTES_AT_ONCE:
            yield table(rows, DECODED)
            rows, size = [], 0
    if rows:
        yield table(rows, DECODED)


def _fetch(path: object, root: Store | None) -> bytes:
    """Read an image file from the store.

    Rows come from strangers: only files below `root` are opened, and no pipes and devices.

    Raises:
        InputError: it is outside, not there, no file, or too large.
    """
    if not isinstance(path, str) or root is None:
        raise InputError("there is no image, expected its bytes or its path")
    name = one_line(path, limit=120)
    place = root.below(_relative(path, root))
    try:
        if root.local:
            found = root.files.get_file_info(place).type
            if found != FileType.File:
                what = "is not there" if found == FileType.NotFound else "is not a file"
                raise InputError(f"image '{name}' {what}: check the path")
        with root.files.open_input_stream(place) as file:
            data: bytes = file.read(MAX_FILE_BYTES + 1)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise InputError(f"image '{name}' cannot be read: {one_line(error, limit=120)}") from None
    if len(data) > MAX_FILE_BYTES:
        raise InputError("the image file is larger than 512 MiB: make it smaller first")
    return data


def _relative(path: str, root: Store) -> str:
    """Return an image's path below the root.

    Raises:
        InputError: it is elsewhere.
    """
    above = f"{root.uri}/"
    whole = "://" in path or (root.local and os.path.isabs(path))  # noqa: PTH117
    inside = path.removeprefix(above)
    if (whole and not path.startswith(above)) or ".." in PurePosixPath(inside).parts:
        raise InputError(
            f"image '{one_line(path, limit=120)}' is outside of '{one_line(root.uri)}': "
            "allow its place with --root"
        )
    return inside
