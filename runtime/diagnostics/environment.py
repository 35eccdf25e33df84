"""What this machine has for running a bundle, and what exactly it lacks."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

from rism.runtime.distribution import DISTRIBUTION
from rism.runtime.engines import rtx_plugin
from rism.runtime.engines.cpu_threads import cpu_count
from rism.runtime.engines.cuda_device import open_device
from rism.runtime.engines.nvidia_driver import Driver, find_driver
from rism.runtime.engines.onnxruntime import choose_provider
from rism.runtime.engines.onnxruntime_cuda import ort_engine
from rism.runtime.engines.providers import is_tensorrt, ort_name
from rism.runtime.engines.tensorrt_library import check_driver, find_library
from rism.runtime.errors import ProviderError, RismError

__all__ = ["NAMES", "Probe", "packages", "probe", "python_line", "the_driver"]

# Best first.
NAMES = (
    "tensorrt-rtx", "tensorrt", "onnxruntime-tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu",
)  # fmt: skip
# Whatever of these is installed is shown; what is not may be right.
_PACKAGES = (
    DISTRIBUTION, "numpy", "tokenizers", "pillow", "onnxruntime", "onnxruntime-gpu", "tensorrt",
    "tensorrt-rtx", rtx_plugin.PACKAGE, "cupy-cuda13x", "cupy-cuda12x",
)  # fmt: skip


@dataclass(frozen=True)
class Probe:
    """Whether a provider can start here: with what, or why not."""

    provider: str
    ready: bool
    text: str


def packages() -> dict[str, str]:
    """Return versions of the installed packages that running a bundle may use."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def python_line() -> str:
    """Name the interpreter and the platform."""
    return (
        f"{platform.python_implementation()} {platform.python_version()} at {sys.prefix} on "
        f"{platform.system()} {platform.release()} {platform.machine()}, {cpu_count()} CPUs"
    )


def the_driver() -> Driver | str:
    """Return NVIDIA's driver, or why there is none."""
    try:
        return find_driver()
    except ProviderError as error:
        return str(error)


def probe(provider: str, *, device: int = 0) -> Probe:
    """Try everything that a provider needs, short of a graph.

    Args:
        provider: one of `NAMES`.
        device: number of the GPU.
    """
    checks: dict[str, Callable[[int], str]] = {
        "onnxruntime-cpu": _onnxruntime,
        "onnxruntime-cuda": _onnxruntime_cuda,
        "onnxruntime-tensorrt-rtx": _plugin,
    }
    try:
        if is_tensorrt(provider):
            return Probe(provider, True, _tensorrt(provider, device))
        return Probe(provider, True, checks[provider](device))
    except RismError as error:
        return Probe(provider, False, str(error))


def _onnxruntime(_: int = 0) -> str:
    choose_provider(ort_name("onnxruntime-cpu"))
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def _onnxruntime_cuda(device: int) -> str:
    choose_provider("cuda")
    ready = f"{_onnxruntime()} on {_gpu(find_driver(), device)}"
    return "; ".join([ready, *ort_engine("cuda", device)[1]])


def _plugin(device: int) -> str:
    rtx_plugin.find_device(device)
    return (
        f"{rtx_plugin.PACKAGE} {rtx_plugin.plugin_version()} in {_onnxruntime()} on "
        f"{_gpu(find_driver(), device)}"
    )


def _tensorrt(provider: str, device: int) -> str:
    library = find_library(provider)
    driver = find_driver()
    check_driver(library, driver)
    name = _gpu(driver, device)
    open_device(device)
    return f"{library.title} {library.version} on {name}"


def _gpu(driver: Driver, device: int) -> str:
    gpu = driver.gpu(device)
    return f"GPU {gpu.number} ({gpu.name}, {gpu.compute_capability})"
