"""Second moments of what a transformer's layers are given, in a file.

`rism calibrate --activations` writes it, `rism export --activations` rounds weights by it. It is a
`.npz` of NumPy with a float32 array (in / G, G, G) for each layer, by the layer's name: means of
x_i x_j within groups of G neighbouring channels, at most 32. A file may come from anybody: sizes,
types and values are checked before they are used.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rism.runtime.errors import InputError, one_line

Moments: TypeAlias = npt.NDArray[np.float32]

_MOST_BYTES = 512 * 2**20
_MOST_LAYERS = 4096
_AGAIN = "make it again with rism calibrate BUNDLE --images DIR --activations FILE"


def moments_to_bytes(moments: Mapping[str, Moments]) -> bytes:
    """Return the content of a file."""
    file = io.BytesIO()
    arrays: dict[str, Any] = dict(moments)
    np.savez(file, **arrays)
    return file.getvalue()


def load_moments(path: Path) -> dict[str, Moments]:
    """Read a file of `rism calibrate --activations`.

    Raises:
        InputError: it is missing, too large, or no such file.
    """
    name = one_line(path.name, limit=60)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if len(entries) > _MOST_LAYERS or sum(each.file_size for each in entries) > _MOST_BYTES:
            raise InputError(
                f"{name} holds {len(entries)} arrays of "
                f"{sum(each.file_size for each in entries)} bytes, expected at most "
                f"{_MOST_LAYERS} and {_MOST_BYTES}: {_AGAIN}"
            )
        with np.load(path, allow_pickle=False) as found:
            moments = {layer: found[layer] for layer in found.files}
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror or error}): {_AGAIN}") from None
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(
            f"{name} holds no activations ({one_line(error, limit=80)}): {_AGAIN}"
        ) from None
    for layer, values in moments.items():
        sound = values.dtype == np.float32 and values.ndim == 3 and values.size > 0
        square = sound and values.shape[1] == values.shape[2]
        if not square or not np.isfinite(values).all() or _squares(values).min() < 0:
            raise InputError(
                f"{name}: '{one_line(layer, limit=80)}' is no float32 array (in / G, G, G) of mean "
                f"products: {_AGAIN}"
            )
    return moments


def _squares(moments: Moments) -> Moments:
    return np.diagonal(moments, axis1=1, axis2=2)
