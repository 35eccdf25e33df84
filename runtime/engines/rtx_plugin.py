"""TensorRT for RTX as a plugin of onnxruntime: a bundle's ONNX graphs, compiled where they run.

The package onnxruntime-ep-nv-tensorrt-rtx brings an execution provider and the library. It is
registered with onnxruntime once in a process, then offers one device a GPU. Options: the package's
`tensorrt_rtx_provider_options.h`.
"""

import warnings
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from rism.runtime.bundle.reader import Bundle
from rism.runtime.distribution import install_hint
from rism.runtime.engines import nvidia_driver
from rism.runtime.engines.kernel_cache import cache_folder
from rism.runtime.engines.nvidia_driver import Gpu
from rism.runtime.engines.onnxruntime import OnnxRuntime
from rism.runtime.engines.shape_profiles import BATCH, profile, ranges
from rism.runtime.errors import ProviderError, RismError, RismWarning, listed, one_line

PACKAGE = "onnxruntime-ep-nv-tensorrt-rtx"
EP_NAME = "NvTensorRTRTXExecutionProvider"
_MODULE = PACKAGE.replace("-", "_")
_CUDA_MAJORS = (12, 13, 14)


def installed() -> bool:
    """Tell whether the package is there; nothing is imported."""
    return find_spec(_MODULE) is not None


def plugin_version() -> str:
    """Return the version of the package, such as "0.5.0"."""
    return str(import_module(_MODULE).__version__)


class OnnxRuntimeRtx(OnnxRuntime):
    """How onnxruntime runs graphs with the plugin."""

    execution_provider = EP_NAME
    package = PACKAGE
    gpu = True
    max_batch = BATCH[-1]

    def available(self) -> str | None:
        """Say that the package is installed; None where it is not. Nothing is imported."""
        return f"{PACKAGE} is installed" if installed() else None

    def check(self, device: int) -> None:
        """Refuse a machine that the plugin does not run on, see `find_device`."""
        find_device(device)

    def probe(self, device: int) -> str:
        """Name the package, onnxruntime and the GPU."""
        found = super().probe(device)
        return (
            f"{PACKAGE} {plugin_version()} in {found} on {nvidia_driver.find_driver().gpu(device)}"
        )

    def configure(
        self, options: Any, device: int, *, stream: int | None, settings: Mapping[str, str]
    ) -> list[Any]:
        """Give the options the plugin's device; there are no providers beside those."""
        options.add_provider_for_devices([find_device(device)], settings)
        # One node that the plugin leaves to the CPU, and there is no session.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        return []

    def load_error(self, file: str, device: int, reason: str) -> RismError:
        """Blame the plugin: it refuses graphs that onnxruntime runs."""
        return ProviderError(
            f"TensorRT for RTX cannot run '{file}' ({reason}): see rism doctor, or use "
            "--provider onnxruntime-cuda"
        )

    def runs(self, graph: str) -> bool:
        """Tell whether the plugin is for a graph of a manifest.

        Not for the VAE encoder: its attention, in float32 or of one head of 512 channels, has no
        kernel in TensorRT for RTX. `rism build` writes it out as products.
        """
        return not graph.startswith("vae_encoder")

    def settings(self, bundle: Bundle, graph: str) -> dict[str, str]:
        """Return the plugin's options for one graph.

        A graph of free sizes gets the range of what the bundle's geometry and prompts can ask for,
        as `rism build` does; without one the plugin assumes any size, and refuses some graphs.
        CUDA graphs (`enable_cuda_graph`) are left out: they replay the addresses of one run, and
        onnxruntime copies each run's arrays to new ones.
        """
        manifest = bundle.manifest
        inputs = manifest.graphs[graph].inputs
        known = ranges(manifest.geometry, manifest.prompt, manifest.noise.shape[0])
        shapes = {inputs[key].name: each for key, each in profile(inputs, known).items()}
        found = _cache_option(bundle)
        if all(each.min == each.max for each in shapes.values()):
            return found
        for key in ("min", "opt", "max"):
            # Commas, whatever the header says: after ";" the plugin drops the inputs that follow.
            sizes = (
                f"{name}:{'x'.join(map(str, getattr(each, key)))}" for name, each in shapes.items()
            )
            found[f"nv_profile_{key}_shapes"] = ",".join(sizes)
        return found


def find_device(number: int) -> Any:
    """Return onnxruntime's device (`OrtEpDevice`) of a GPU by CUDA's number, the plugin registered.

    Raises:
        ProviderError: the package, the driver or the GPU is missing, does not fit the others, or
            onnxruntime cannot load the plugin.
    """
    if not installed():
        raise ProviderError(
            f"provider onnxruntime-tensorrt-rtx needs the package {PACKAGE}, which is not "
            f"installed: pip uninstall onnxruntime && {install_hint('rtx')}"
        )
    driver = nvidia_driver.find_driver()
    gpu = driver.gpu(number)
    _check_driver(driver.cuda)
    _check_gpu(gpu)
    _register()
    import onnxruntime

    # In the order of the bus; only their memory has CUDA's number.
    kind = onnxruntime.OrtDeviceMemoryType.DEFAULT
    found = {
        each.memory_info(kind).device_id: each
        for each in onnxruntime.get_ep_devices()
        if each.ep_name == EP_NAME
    }
    if number not in found:
        raise ProviderError(
            f"{PACKAGE} {plugin_version()} offers no device for {gpu} (its devices: "
            f"{listed(map(str, sorted(found)))}): update it, or use --provider onnxruntime-cuda"
        )
    return found[number]


@cache
def _register() -> None:
    try:
        import onnxruntime

        module = import_module(_MODULE)
        onnxruntime.register_execution_provider_library(EP_NAME, module.get_library_path())
    except Exception as error:  # onnxruntime's exceptions share no base
        raise ProviderError(
            f"onnxruntime cannot load {PACKAGE} ({one_line(error, limit=300)}): see nvidia-smi, "
            f"update both with {install_hint('rtx')}, or use --provider onnxruntime-cuda"
        ) from None


def _check_driver(cuda: tuple[int, int]) -> None:
    from importlib import metadata  # costs as much as all modules of ours

    for major in _CUDA_MAJORS:
        try:
            version = metadata.version(f"{PACKAGE}-cu{major}")
        except metadata.PackageNotFoundError:
            continue
        if cuda < (major, 0):
            raise ProviderError(
                f"NVIDIA's driver serves CUDA {cuda[0]}.{cuda[1]}, {PACKAGE}-cu{major} {version} "
                f"needs CUDA {major}.0: update the driver, or install {PACKAGE}-cu{cuda[0]} "
                "in its place"
            )


def _check_gpu(gpu: Gpu) -> None:
    major, minor = (int(part) for part in gpu.compute_capability.split("."))
    if (major, minor) not in ((8, 6), (8, 9)) and major < 12:
        raise ProviderError(
            f"{PACKAGE} does not run on {gpu}, expected an RTX GPU of compute capability "
            "8.6, 8.9, or 12.0 and above: use --provider onnxruntime-cuda"
        )


def _cache_option(bundle: Bundle) -> dict[str, str]:
    """Name a folder for kernels that the plugin compiled: of this bundle and this version."""
    try:
        folder = cache_folder() / f"{PACKAGE}-{plugin_version()}-{bundle.digest[:16]}"
        folder.mkdir(mode=0o700, exist_ok=True)
    except (OSError, ValueError) as error:
        warnings.warn(
            f"compiled kernels of {bundle.path} cannot be kept ({one_line(error, limit=200)}): "
            "each process compiles them anew; XDG_CACHE_HOME may name another place",
            RismWarning,
            stacklevel=2,
        )
        return {}
    return {"nv_runtime_cache_path": str(folder)}
