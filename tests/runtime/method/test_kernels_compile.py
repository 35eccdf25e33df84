"""The kernels for real GPUs, without one: NVIDIA's compilers take them, and two blocks fit."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rism.runtime.method.postprocess_cuda import kernel_macros, kernel_source

# A100 and RTX 5090, the oldest and the newest that are meant.
ARCHITECTURES = ("sm_80", "sm_120")
KERNELS = (
    "attention_maps", "class_means", "mask_pixels", "propagate", "scores_and_sums",
    "separabilities", "sums_by_region",
)  # fmt: skip
KLEIN = 4096  # channels, the widest


def options(channels: int) -> list[str]:
    """What `Device.kernels` asks of NVRTC; nvcc takes the same."""
    macros = [f"-D{name}={value}" for name, value in kernel_macros(channels).items()]
    return ["--std=c++17", "--fmad=false", *macros]


def test_nvcc_takes_them(tmp_path: Path) -> None:
    """And keeps two blocks of threads on a multiprocessor busy, with next to nothing spilt."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is missing: it comes with the CUDA toolkit")
    listed = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True)
    wanted = [each for each in ARCHITECTURES if each in listed.stdout.split()]
    assert wanted
    (tmp_path / "postprocess.cu").write_text(kernel_source())
    targets = [f"-gencode=arch={each.replace('sm', 'compute')},code={each}" for each in wanted]
    command = ["nvcc", *options(KLEIN), *targets, "-Xptxas=-v", "-Werror=all-warnings"]
    command += ["-fatbin", "postprocess.cu", "-o", "postprocess.fatbin"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = done.stderr
    assert sorted(set(re.findall(r"entry function '(\w+)'", told))) == list(KERNELS)
    assert len(re.findall(r"entry function", told)) == len(KERNELS) * len(wanted)
    # 64 K registers of a multiprocessor for 2 blocks of 256 threads; the block of 1024, which ends
    # long before, has its own limit of 64.
    assert max(int(n) for n in re.findall(r"Used (\d+) registers", told)) <= 128
    assert max(int(n) for n in re.findall(r"(\d+) bytes spill stores", told)) <= 64
    assert (tmp_path / "postprocess.fatbin").stat().st_size > 10_000


def _nvrtc() -> Any:
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError:
        pytest.skip("NVRTC is missing: pip install nvidia-cuda-nvrtc")
    return nvrtc


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvrtc_takes_them(architecture: str) -> None:
    """What CuPy compiles with: no header of the system, and none is needed."""
    nvrtc = _nvrtc()
    error, program = nvrtc.nvrtcCreateProgram(kernel_source().encode(), b"k.cu", 0, [], [])
    assert not error.value
    flags = [each.encode() for each in [*options(KLEIN), f"-arch={architecture}"]]
    (failure,) = nvrtc.nvrtcCompileProgram(program, len(flags), flags)
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = bytes(size)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert not failure.value, log.decode()[:3000]
    error, size = nvrtc.nvrtcGetCUBINSize(program)
    assert not error.value and size > 10_000
