"""Mean squares of activations in a file, which may come from anybody."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rism.calibration.activation_power import load_power, power_to_bytes
from rism.runtime import InputError


def test_what_is_written_is_read(tmp_path: Path) -> None:
    power = {"blocks.0.to_q": np.arange(5, dtype=np.float32), "blocks.1": np.ones(3, np.float32)}
    file = tmp_path / "a.npz"
    file.write_bytes(power_to_bytes(power))
    found = load_power(file)
    assert found.keys() == power.keys()
    assert all((found[name] == power[name]).all() for name in power)


def _saved(**arrays: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(300 * 2**20))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"no archive", "holds no activations"),
        (_saved(a=np.array([{}], object)), "holds no activations"),
        (_saved(a=np.float32([-1.0])), "'a' is no float32 array"),
        (_saved(a=np.float32([np.nan])), "'a' is no float32 array"),
        (_saved(a=np.ones((2, 2), np.float32)), "'a' is no float32 array"),
        (_saved(a=np.ones(2)), "'a' is no float32 array"),
        (_bomb(), "holds 1 arrays of 314572800 bytes, expected at most"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "a.npz"
    file.write_bytes(content)
    with pytest.raises(InputError, match=why):
        load_power(file)
    with pytest.raises(InputError, match="cannot be read"):
        load_power(tmp_path / "none.npz")
