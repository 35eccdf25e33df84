"""What the driver says, asked of a libcuda that is compiled here."""

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rism.runtime.engines import nvidia_driver
from rism.runtime.engines.nvidia_driver import Gpu, find_driver, sm
from rism.runtime.errors import ProviderError

# Two GPUs; VERSION and INIT are given to the compiler.
LIBCUDA = """
#include <stddef.h>
#include <string.h>
int cuDriverGetVersion(int *v) { *v = VERSION; return 0; }
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGetCount(int *n) { *n = 2; return 0; }
int cuDeviceGet(int *device, int n) { *device = 100 + n; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
  strncpy(name, device == 100 ? "RTX 4090" : "RTX 5090", size);
  return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  if (attribute != 75 && attribute != 76) return 1;
  *value = attribute == 75 ? (device == 100 ? 8 : 12) : (device == 100 ? 9 : 0);
  return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)24 << 30; return MEMORY; }
"""


@pytest.fixture
def asked_anew() -> Iterator[None]:
    find_driver.cache_clear()
    yield
    find_driver.cache_clear()


def use(folder: Path, patch: pytest.MonkeyPatch, **values: int) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    (folder / "cuda.c").write_text(LIBCUDA)
    given = {"VERSION": 13000, "INIT": 0, "MEMORY": 0, **values}
    subprocess.run(
        [compiler, "-shared", "-fPIC", *(f"-D{k}={v}" for k, v in given.items()),
         folder / "cuda.c", "-o", folder / "libcuda.so"],
        check=True, capture_output=True,
    )  # fmt: skip
    library = ctypes.CDLL(str(folder / "libcuda.so"))
    patch.setattr(nvidia_driver, "_load", lambda: library)


def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_anew: None) -> None:
    use(tmp_path, monkeypatch, VERSION=12080)
    found = find_driver()
    assert found.cuda == (12, 8)
    assert found.gpus == (
        Gpu(0, "RTX 4090", "8.9", 24 * 2**30),
        Gpu(1, "RTX 5090", "12.0", 24 * 2**30),
    )
    assert sm(found.gpu(1).compute_capability) == "sm120"
    with pytest.raises(ProviderError) as error:
        found.gpu(2)
    assert str(error.value) == (
        "there is no GPU 2, this machine has 0 (RTX 4090), 1 (RTX 5090): pass --device with one of "
        "them, or see CUDA_VISIBLE_DEVICES and nvidia-smi"
    )


def test_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_anew: None) -> None:
    use(tmp_path, monkeypatch, INIT=100)
    assert find_driver().gpus == ()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"INIT": 803}, r"driver \(CUDA 13.0\) does not start \(cuInit says 803\): see nvidia-smi"),
        ({"MEMORY": 999}, r"driver failed \(cuDeviceTotalMem_v2 says 999\): see nvidia-smi"),
    ],
)
def test_a_driver_that_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked_anew: None,
    values: dict[str, int],
    says: str,
) -> None:
    use(tmp_path, monkeypatch, **values)
    with pytest.raises(ProviderError, match=says):
        find_driver()


def test_none(monkeypatch: pytest.MonkeyPatch, asked_anew: None) -> None:
    def absent(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(ProviderError) as error:
        find_driver()
    assert str(error.value) == (
        "there is no NVIDIA driver here (no libcuda), expected one for GPU providers: install it "
        "and see nvidia-smi (in a container: --gpus all), or use --provider onnxruntime-cpu"
    )
