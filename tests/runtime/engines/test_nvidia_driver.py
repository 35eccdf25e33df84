"""What the driver says, asked of a libcuda that is compiled here."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterator
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
static int retained, pushed;
int cuDevicePrimaryCtxRetain(void **context, int device) {
  retained++;
  *context = (void *)(size_t)(0x7f0000000000 + device);
  return 0;
}
int cuCtxPushCurrent_v2(void *context) { pushed = (size_t)context - 0x7f0000000000; return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) {
  *total = (size_t)24 << 30;
  *free = (size_t)(pushed - 99) << 30;
  return MEMORY;
}
int cuCtxPopCurrent_v2(void **context) { pushed = 0; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { retained--; return 0; }
int left(void) { return retained + pushed; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)24 << 30; return MEMORY; }
"""


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    find_driver.cache_clear()
    yield
    find_driver.cache_clear()


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What puts a libcuda of these values in the place of the real one."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")

    def call(**values: int) -> None:
        (tmp_path / "cuda.c").write_text(LIBCUDA)
        given = {"VERSION": 13000, "INIT": 0, "MEMORY": 0, **values}
        command = [compiler, "-shared", "-fPIC", *(f"-D{k}={v}" for k, v in given.items())]
        command += ["cuda.c", "-o", "libcuda.so"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        library = ctypes.CDLL(str(tmp_path / "libcuda.so"))
        monkeypatch.setattr(nvidia_driver, "_load", lambda: library)

    return call


def test_gpus(use: Callable[..., None]) -> None:
    use(VERSION=12080)
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


def test_no_device(use: Callable[..., None]) -> None:
    use(INIT=100)
    assert find_driver().gpus == ()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"INIT": 803}, r"driver \(CUDA 13.0\) does not start \(cuInit says 803\): see nvidia-smi"),
        ({"MEMORY": 999}, r"driver failed \(cuDeviceTotalMem_v2 says 999\): see nvidia-smi"),
    ],
)
def test_a_driver_that_fails(use: Callable[..., None], values: dict[str, int], says: str) -> None:
    use(**values)
    with pytest.raises(ProviderError, match=says):
        find_driver()


def test_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(ProviderError) as error:
        find_driver()
    assert str(error.value) == (
        "there is no NVIDIA driver here (no libcuda), expected one for GPU providers: install it "
        "and see nvidia-smi (in a container: --gpus all), or use --provider onnxruntime-cpu"
    )


def test_what_is_free(use: Callable[..., None]) -> None:
    use()
    assert [nvidia_driver.free_memory(number) for number in (0, 1)] == [2**30, 2**31]
    assert nvidia_driver._load().left() == 0, "the context is given back"
    with pytest.raises(ProviderError, match="there is no GPU 2"):
        nvidia_driver.free_memory(2)
    find_driver.cache_clear()
