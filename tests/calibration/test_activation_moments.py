"""Second moments of activations in a file, which may come from anybody."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rism.calibration.activation_moments import load_moments, moments_to_bytes
from rism.runtime import InputError


def test_what_is_written_is_read(tmp_path: Path) -> None:
    moments = {"a.0.to_q": np.ones((5, 2, 2), np.float32), "a.1": np.ones((3, 1, 1), np.float32)}
    file = tmp_path / "a.npz"
    file.write_bytes(moments_to_bytes(moments))
    found = load_moments(file)
    assert found.keys() == moments.keys()
    assert all((found[name] == moments[name]).all() for name in moments)


def _saved(**arrays: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(600 * 2**20))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"no archive", "holds no activations"),
        (_saved(a=np.array([{}], object)), "holds no activations"),
        (_saved(a=np.float32([[[-1.0]]])), "'a' is no float32 array"),
        (_saved(a=np.float32([[[np.nan]]])), "'a' is no float32 array"),
        (_saved(a=np.ones((2, 2, 3), np.float32)), "'a' is no float32 array"),
        (_saved(a=np.ones((2, 2, 2))), "'a' is no float32 array"),
        (_bomb(), "holds 1 arrays of 629145600 bytes, expected at most"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "a.npz"
    file.write_bytes(content)
    with pytest.raises(InputError, match=why):
        load_moments(file)
    with pytest.raises(InputError, match="cannot be read"):
        load_moments(tmp_path / "none.npz")
