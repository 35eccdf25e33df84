"""Compiled kernels of TensorRT for RTX are kept for later processes; what is not sound is not used.

The library is the recorded fake, which compiles for each shape that its cache has not.
"""

import hashlib
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rism.runtime import Segmenter
from rism.runtime.engines import kernel_cache
from rism.runtime.errors import RismWarning
from tests.runtime.engines.fake_tensorrt import FakeTensorRt
from tests.runtime.engines.profiles import ALL, FIXED


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    return tmp_path / "cache/rism/tensorrt-rtx"


@pytest.fixture
def process(
    built: Any, folder: Path, trt: FakeTensorRt, colours: np.ndarray
) -> Callable[..., tuple[int, list[str]]]:
    """A new "process" that segments: how many shapes it compiled for, and its warnings."""
    fixed = built({**ALL, "transformer.vectors": FIXED})

    def run(bundle: Path = fixed) -> tuple[int, list[str]]:
        del trt.compiled[:]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            segmenter = Segmenter.from_bundle(bundle, provider="tensorrt-rtx")
            assert segmenter.segment(colours, "red").mask.any()
        assert {each.category for each in said} <= {RismWarning}
        return len(trt.compiled), [str(each.message) for each in said]

    return run


def test_the_next_process_compiles_nothing(process: Any, folder: Path) -> None:
    assert process() == (3, [])
    files = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert len(files) == 3  # one a plan
    assert process() == (0, [])
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == files
    if sys.platform != "win32":
        assert folder.stat().st_mode & 0o777 == 0o700


def test_kernels_for_more_shapes_are_added(
    process: Any, built: Any, folder: Path, colours: np.ndarray, trt: FakeTensorRt
) -> None:
    bundle = built()
    assert process(bundle) == (3, [])
    segmenter = Segmenter.from_bundle(bundle, provider="tensorrt-rtx")
    segmenter.segment(colours[:, :96], ["red", "blue"])
    assert len(trt.compiled) == 3 + 3
    segmenter.segment(colours[:, 64:], ["green", "red"])
    assert len(trt.compiled) == 3 + 3
    assert len(list(folder.iterdir())) == 3
    assert process(bundle) == (0, [])


def test_what_another_machine_compiled_is_not_used(
    process: Any, trt: FakeTensorRt, folder: Path
) -> None:
    """Other cards and versions have other files; other drivers are the library's to refuse."""
    assert process()[0] == 3
    trt.driver = "590.1"
    compiled, said = process()
    assert compiled == 3
    assert all("not used (the library refuses them, as after an update" in s for s in said)
    assert {s.partition(f" in {folder}")[0] for s in said} == {
        f"compiled kernels of engine 'rtx-fp16' of graph '{graph}'"
        for graph in ("text_encoder", "vae_encoder", "transformer.vectors")
    }
    assert process() == (0, [])


def test_files_that_are_not_sound(
    process: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    process()
    files = sorted(folder.iterdir())
    whole = [file.read_bytes() for file in files]
    swapped = [*whole[1:], whole[0]]
    for contents in ([b"", whole[1][:-1], whole[2][:-2] + b"?]"], swapped):
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)
        compiled, said = process()
        assert (compiled, len(said)) == (3, 3)
        assert all("are not used (damaged): they are compiled anew" in line for line in said)
    assert process() == (0, [])
    if sys.platform != "win32":
        for file in files:
            file.rename(tmp_path / file.name)
            file.symlink_to(tmp_path / file.name)
        assert process()[0] == 3
        assert not any(file.is_symlink() for file in files)
    monkeypatch.setattr(kernel_cache, "LARGEST_BYTES", 5)
    compiled, said = process()
    assert compiled == 3
    assert sum(" are not used (" in line for line in said) == 3
    assert sum("bytes, expected up to 5): each process compiles" in line for line in said) == 3


def test_a_place_that_cannot_be_used(process: Any, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    compiled, said = process()
    assert compiled == 3
    assert len(said) == 3
    assert all("each process compiles them anew" in line for line in said)
    if sys.platform == "win32":
        return
    (tmp_path / "cache").unlink()
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert f"(others can write to {folder}, expected mode 700)" in process()[1][0]
    assert list(folder.iterdir()) == []


def test_a_library_that_takes_no_cache(process: Any, trt: FakeTensorRt, folder: Path) -> None:
    trt.fails = {"set_runtime_cache"}
    assert "cannot be kept (the library refuses)" in process()[1][0]
    assert list(folder.iterdir()) == []


def test_the_oldest_go_first(process: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True, mode=0o700)
    old, other = folder / f"{hashlib.sha256(b'').hexdigest()}.rtcache", folder / "notes.txt"
    for file in (old, other):
        file.write_bytes(bytes(2000))
        os.utime(file, (1, 1))
    monkeypatch.setattr(kernel_cache, "LIMIT_BYTES", 2000)
    process()
    assert not old.exists()
    assert other.exists()
    assert len(list(folder.iterdir())) == 4


def test_tensorrt_needs_none(process: Any, built: Any, folder: Path) -> None:
    bundle = built(target="tensorrt")
    segmenter = Segmenter.from_bundle(bundle, provider="tensorrt")
    segmenter.segment(np.zeros((32, 32, 3), np.uint8), "red")
    assert not folder.exists()
