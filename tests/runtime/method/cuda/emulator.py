"""The kernels on a CPU: the same source under g++, see emulate.hpp."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent
BUILD = HERE.parents[3] / "build/emulated"


class EmulatedKernels:
    """`rism.runtime.engines.cuda_device.Kernels` over NumPy's memory.

    Attributes:
        launched: names of the kernels, in order.
        downwards: run threads and blocks from the last to the first.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.launched: list[str] = []
        self.downwards = False

    def launch(
        self, name: str, grid: tuple[int, int, int], threads: int, arguments: Sequence[Any]
    ) -> None:
        self.launched.append(name)
        cells, keep = [], []
        for each in arguments:
            if isinstance(each, np.ndarray):
                assert each.flags.c_contiguous
                value: Any = ctypes.c_void_p(each.ctypes.data)
            else:
                # Exactly the declared type, as CuPy passes it on.
                assert isinstance(each, np.generic), f"{name} is given a {type(each)}"
                value = (ctypes.c_byte * each.nbytes).from_buffer_copy(each.tobytes())
            keep.append(value)
            cells.append(ctypes.addressof(value))
        code = getattr(self._library, f"emulated_{name}")(
            *grid, threads, len(cells), int(self.downwards), (ctypes.c_void_p * len(cells))(*cells)
        )
        if code == 1:
            raise AssertionError(f"{name} takes another number of arguments than {len(cells)}")
        if code == 2:
            raise AssertionError(f"{name}: some threads of a block do not reach a barrier")


def emulated(source: str, macros: dict[str, int]) -> EmulatedKernels:
    """Compile kernels for this machine; fails in CI where there is no g++."""
    return EmulatedKernels(_library(source, tuple(sorted(macros.items()))))


@cache
def _library(source: str, macros: tuple[tuple[str, int], ...]) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        reason = "a C++ compiler is missing: apt-get install g++"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-fno-gnu-unique"]
    command += ["-ffp-contract=off", "-U_FORTIFY_SOURCE"]  # it forbids jumps between stacks
    command += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    command += [f"-D{name}={value}" for name, value in macros] + [f"-I{HERE}"]
    parts = [source, *command, *(each.read_text() for each in sorted(HERE.glob("*.[ch]pp")))]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    file = BUILD / f"{key}.so"  # kept between runs, and shared by the processes of one
    if not file.exists():
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "postprocess.cu").write_text(source)
            made = BUILD / f"{key}.{os.getpid()}.so"
            BUILD.mkdir(parents=True, exist_ok=True)
            command += [f"-I{folder}", str(HERE / "postprocess.cpp"), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-3000:]
            made.replace(file)
    return ctypes.CDLL(str(file))
