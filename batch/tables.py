"""The columns of the tables between the stages, ids as digests, and stores by their URL."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow.fs import FileSystem, LocalFileSystem

from rism.runtime.errors import InputError, one_line

Digests: TypeAlias = npt.NDArray[np.bytes_]
"""(n,) "S16": the first 128 bits of a hash of each id."""

# A row for each image. `image` has the file's bytes, or is null where `path` says where it is.
READ = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.large_binary()),
        ("path", pa.string()),
        ("expressions", pa.list_(pa.string())),
        ("error", pa.string()),
        ("read_s", pa.float64()),
    ]
)
# `pixels` are height x width x 3 bytes; null with an error.
DECODED = pa.schema(
    [
        ("id", pa.string()),
        ("expressions", pa.list_(pa.string())),
        ("pixels", pa.large_binary()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("error", pa.string()),
        ("read_s", pa.float64()),
        ("decode_s", pa.float64()),
    ]
)
_JUDGED = [
    ("confidence", pa.float64()),
    ("separability", pa.float64()),
    ("reason", pa.string()),
    ("error", pa.string()),
]
_RUN = [("provider", pa.string()), ("precision", pa.string())]
_SECONDS = [("read_s", pa.float64()), ("decode_s", pa.float64()), ("segment_s", pa.float64())]
_FOUND = [("expression", pa.string()), ("mask", pa.large_binary()), *_JUDGED]
# `mask` has a bit for each pixel, row by row, as numpy.packbits writes them; null where there is
# no result.
FOUND = pa.schema(
    [
        ("id", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("found", pa.list_(pa.struct(_FOUND))),
        *_RUN,
        *_SECONDS,
    ]
)
_RESULT = [
    ("expression", pa.string()),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("rle", pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])),
    ("box_xyxy", pa.list_(pa.int32())),
    ("area_px", pa.int64()),
    *_JUDGED,
]
ENCODED = pa.schema(
    [
        ("id", pa.string()),
        ("results", pa.list_(pa.struct(_RESULT))),
        *_RUN,
        *_SECONDS,
        ("encode_s", pa.float64()),
    ]
)
ROWS = pa.schema([("id", pa.string()), *_RESULT])
"""The columns of DEST: a row for each id and expression."""


def digests(ids: Iterable[str]) -> Digests:
    """Return the digest of each id, in their order.

    16 bytes an id, whatever its length: 1.6 GB for 10^8 of them, shared by all processes of a
    machine. The chance that any two of these have one digest is 10^-23.
    """
    made = [hashlib.blake2b(each.encode(), digest_size=16).digest() for each in ids]
    return np.array(made, dtype="S16")


def contained(found: Digests, known: Digests) -> npt.NDArray[np.bool_]:
    """Tell which of `found`, (n,), are in `known`, which is sorted: (n,) bool."""
    if not len(known):
        return np.zeros(len(found), np.bool_)
    places = np.minimum(np.searchsorted(known, found), len(known) - 1)
    return np.asarray(known[places] == found)


@dataclass(frozen=True)
class Store:
    """A file or folder in a file system that pyarrow opens.

    Attributes:
        uri: as it was given, without credentials.
        files: the file system.
        path: inside it.
    """

    uri: str
    files: FileSystem
    path: str

    @classmethod
    def open(cls, uri: str, what: str) -> "Store":
        """Open the store of a path or URL; nothing is read yet.

        Raises:
            InputError: pyarrow has no such store, or refuses its settings.
        """
        if "://" not in uri:
            path = os.path.abspath(os.path.expanduser(uri))  # noqa: PTH100, PTH111
            return cls(path, LocalFileSystem(), path)
        shown = without_secrets(uri)
        try:
            files, path = FileSystem.from_uri(uri)
        except (pa.ArrowException, OSError, ValueError) as error:
            why = one_line(str(error).replace(uri, shown), limit=120)
            raise InputError(
                f"{what} '{one_line(shown)}' is in no store that pyarrow opens ({why}): expected a "
                "path, or a URL of s3, gs, abfs or hdfs"
            ) from None
        return cls(shown.rstrip("/"), files, path.rstrip("/"))

    @property
    def local(self) -> bool:
        """Whether it is a folder of this machine, or one that is mounted here."""
        return isinstance(self.files, LocalFileSystem)

    @property
    def folder(self) -> "Store":
        """The folder that a file is in."""
        return Store(self.uri.rpartition("/")[0], self.files, str(PurePosixPath(self.path).parent))

    def below(self, name: str) -> str:
        """Return the path of a file in this folder."""
        return f"{self.path}/{name}"


def without_secrets(uri: str) -> str:
    """Return a URL without user, password and query, which may hold keys."""
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query="", fragment="").geturl()


def table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Make a table of rows; a column that a row lacks is null in it."""
    return pa.Table.from_pylist(rows, schema=schema)
