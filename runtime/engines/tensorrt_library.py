"""TensorRT and TensorRT for RTX: finding the library, reading a plan, explaining its errors.

A plan is code, which the library runs. It is read only if the manifest gives its hash, so trust
in a bundle's manifest is trust in its plans.
"""

from collections import deque
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, cast

from rism.runtime.distribution import install_hint
from rism.runtime.engines import cuda_device, nvidia_driver
from rism.runtime.engines.nvidia_driver import Driver
from rism.runtime.engines.tensorrt_api import EngineObject, TensorRt
from rism.runtime.errors import BundleError, ProviderError, RismError, one_line

# By target: the module and the library's name.
LIBRARIES = {
    "tensorrt-rtx": ("tensorrt_rtx", "TensorRT for RTX"),
    "tensorrt": ("tensorrt", "TensorRT"),
}
_KEPT_LINES = 32
_MALFORMED = 32  # EngineInvalidityDiagnostics.MALFORMED_ENGINE
# TensorRT for RTX, then TensorRT's two ways.
_OTHER_VERSION = (
    "has been created with",
    "Version tag does not match",
    "expecting library version",
)


@dataclass(frozen=True)
class Library:
    """An installed library, and the major version of CUDA that it was built with, if known."""

    target: str
    title: str
    version: str
    cuda_major: int | None
    module: TensorRt


@dataclass(frozen=True)
class ReadPlan:
    """A plan in memory, and the library's objects that have to live as long."""

    engine: EngineObject
    logger: Any
    runtime: Any


@cache
def find_library(target: str) -> Library:
    """Import the library of a target.

    Raises:
        ProviderError: it is not installed, or cannot be loaded.
    """
    name, title = LIBRARIES[target]
    try:
        module = import_module(name)
    except Exception as error:  # a wheel without its libraries raises whatever it meets
        raise ProviderError(
            f"provider {target} needs {title}, which cannot be imported "
            f"({one_line(error, limit=120)}): {install_hint(f'{target},cuda')}"
        ) from None
    api = cast(TensorRt, module)
    return Library(target, title, str(api.__version__), _cuda_major(name), api)


def check_driver(library: Library, driver: Driver) -> None:
    """Refuse a driver that is older than the library's CUDA.

    Raises:
        ProviderError: naming both.
    """
    if library.cuda_major is not None and driver.cuda < (library.cuda_major, 0):
        mine = ".".join(map(str, driver.cuda))
        package = LIBRARIES[library.target][0].replace("_", "-")
        raise ProviderError(
            f"NVIDIA's driver serves CUDA {mine}, {library.title} {library.version} needs CUDA "
            f"{library.cuda_major}.0: update the driver, or install {package}-cu{driver.cuda[0]}"
        )


def probe(target: str, device: int) -> str:
    """Try all that running a target's plans needs, and name the library and the GPU.

    Raises:
        ProviderError: the library, the driver, the GPU or CuPy is missing or does not fit.
    """
    library = find_library(target)
    driver = nvidia_driver.find_driver()
    check_driver(library, driver)
    gpu = driver.gpu(device)
    cuda_device.open_device(device)
    return f"{library.title} {library.version} on {gpu}"


def read_plan(library: Library, plan: bytes, *, label: str, rebuild: str) -> ReadPlan:
    """Deserialise a plan; messages call it `label` and end in the command `rebuild`.

    Raises:
        BundleError: not a plan, or not all of it.
        ProviderError: of another version or GPU, no driver, too little memory.
    """
    logger, runtime = _runtime(library)
    logger.lines.clear()
    # TensorRT for RTX looks at the header first, and names what it misses.
    check = getattr(runtime, "get_engine_validity", None)
    flags = 0 if check is None else int(check(plan)[1])
    engine = None
    if not flags & _MALFORMED:
        engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise _refusal(library, logger.lines, flags, label=label, rebuild=rebuild)
    return ReadPlan(engine, logger, runtime)


def _refusal(
    library: Library, lines: deque[str], flags: int, *, label: str, rebuild: str
) -> RismError:
    """Return the error for what the library logged."""
    mine = f"{library.title} {library.version}"
    said = " | ".join(lines)
    capability = "compute capability" in said and "Skipping" not in said
    if flags & 2 or "incompatible device" in said or capability:
        reason = _line(lines, "incompatible device")
        return ProviderError(f"{label} was not built for this GPU ({reason}): {rebuild}")
    # TensorRT calls another version a serialization error, as it does a broken plan.
    if flags & 1 or any(words in said for words in _OTHER_VERSION):
        reason = _line(lines, *_OTHER_VERSION)
        return ProviderError(
            f"{label} was built by another version than {mine} ({reason}): {rebuild}"
        )
    if flags & _MALFORMED or "Serialization" in said or "magic tag" in said.lower():
        return BundleError(
            f"{label} is not a whole plan for {mine} ({_line(lines, 'erial')}): copy the bundle "
            f"again, or {rebuild}"
        )
    if flags & 4 or "driver version is insufficient" in said:
        return ProviderError(
            f"{mine} found no NVIDIA driver, or one that is too old (CUDA driver version is "
            "insufficient for CUDA runtime version), expected one for its CUDA: install or update "
            "it and see nvidia-smi, or use --provider onnxruntime-cpu"
        )
    return ProviderError(
        f"{mine} cannot load {label} ({one_line(said or 'it does not say why', limit=300)}): "
        f"{rebuild}"
    )


def _line(lines: deque[str], *words: str) -> str:
    """Return the first line that has one of some words in it; all lines where none has."""
    found = (line for line in lines if any(word in line for word in words))
    return one_line(next(found, " | ".join(lines)), limit=200)


@cache
def _runtime(library: Library) -> tuple[Any, Any]:
    """Return a logger that keeps the last lines and prints none, and a runtime.

    One of each for the life of the process: the library goes on using the first logger that it
    was given, whatever it is given later, and making a runtime while another thread of the
    library logs has hung.
    """
    trt = library.module

    class Lines(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.lines: deque[str] = deque(maxlen=_KEPT_LINES)

        def log(self, severity: Any, text: str) -> None:
            if severity != trt.ILogger.Severity.VERBOSE:
                self.lines.append(one_line(text))

    logger = Lines()
    return logger, trt.Runtime(logger)


def _cuda_major(module: str) -> int | None:
    """Read it from the name of the wheel that is installed: tensorrt-rtx-cu13."""
    from importlib import metadata  # costs more than everything else here

    for major in (12, 13, 14):
        try:
            metadata.distribution(f"{module}_cu{major}_libs")
        except metadata.PackageNotFoundError:
            continue
        return major
    return None
