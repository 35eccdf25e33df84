"""TensorRT for RTX as a plugin of onnxruntime: what it is told, what it runs, what is refused.

The package itself is real. Its devices need a GPU, so they are doubles here: in the order of the
bus, with CUDA's number on their memory, as the package lists them.
"""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest

from rism.runtime import ProviderError, Segmenter
from rism.runtime.bundle.reader import Bundle, resolve_bundle
from rism.runtime.engines import nvidia_driver, rtx_plugin
from rism.runtime.engines.nvidia_driver import Driver, Gpu
from rism.runtime.engines.selection import EngineRequest, select_engines
from rism.runtime.errors import RismWarning
from tests.conftest import Reseal
from tests.paths import ROOT

RTX = "onnxruntime-tensorrt-rtx"
TWO = Driver((13, 0), (Gpu(0, "RTX 4060", "8.9", 8 << 30), Gpu(1, "RTX 5090", "12.0", 32 << 30)))


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The package, a driver and two GPUs, as far as rism looks at them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    listed = (("CPUExecutionProvider", 0), (rtx_plugin.EP_NAME, 1), (rtx_plugin.EP_NAME, 0))
    devices = [
        SimpleNamespace(
            ep_name=name, number=n, memory_info=lambda _, n=n: SimpleNamespace(device_id=n)
        )
        for name, n in listed
    ]
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: devices)
    for name, value in (("installed", True), ("_register", None), ("plugin_version", "0.5.0")):
        monkeypatch.setattr(rtx_plugin, name, lambda value=value: value)
    monkeypatch.setattr(nvidia_driver, "find_driver", lambda: TWO)


@pytest.fixture
def half(tiny_bundle: Path, reseal: Reseal) -> Path:
    """A bundle that says float16; its graphs are never loaded here."""
    precision = {"compute": "float16", "storage": "float16"}
    return reseal(tiny_bundle, lambda data: data.update(precision=precision))


def test_without_the_package(half: Path) -> None:
    with pytest.raises(ProviderError) as error:
        Segmenter.from_bundle(half, provider="rtx+cpu")
    assert str(error.value).startswith(
        f"provider {RTX} needs the package onnxruntime-ep-nv-tensorrt-rtx, which is not installed: "
        "pip uninstall onnxruntime && pip install "
    )
    assert "[rtx]" in str(error.value)


def test_the_real_package_without_a_driver() -> None:
    """A process of its own: the package loads its libraries for all that follows."""
    pytest.importorskip("onnxruntime_ep_nv_tensorrt_rtx")
    code = (
        "from rism.runtime.engines import nvidia_driver as d, rtx_plugin as p\n"
        "try: print('a driver', d.find_driver())\n"
        "except Exception:\n"
        "  d.find_driver = lambda: d.Driver((13, 4), (d.Gpu(0, 'RTX 4060', '8.9', 0),))\n"
        "  p.find_device(0)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    if run.stdout:
        pytest.skip("needs a machine without a driver")
    last = run.stderr.splitlines()[-1]
    assert "ProviderError: onnxruntime cannot load onnxruntime-ep-nv-tensorrt-rtx (" in last
    assert "libcuda.so.1: cannot open shared object file" in last
    assert last.endswith("or use --provider onnxruntime-cuda")


@pytest.mark.parametrize(
    ("driver", "says"),
    [
        (
            Driver((12, 4), TWO.gpus),
            "NVIDIA's driver serves CUDA 12.4, onnxruntime-ep-nv-tensorrt-rtx-cu13 0.5.0 needs "
            "CUDA 13.0: update the driver, or install onnxruntime-ep-nv-tensorrt-rtx-cu12 in ",
        ),
        (
            Driver((13, 0), (Gpu(0, "H100", "9.0", 0),)),
            r"does not run on GPU 0 \(H100, 9.0\), expected an RTX GPU of compute capability 8.6, ",
        ),
        (
            Driver((13, 0), (*TWO.gpus, Gpu(2, "RTX 3060", "8.6", 0))),
            r"0.5.0 offers no device for GPU 2 \(RTX 3060, 8.6\) \(its devices: 0, 1\): update it",
        ),
    ],
)
def test_a_machine_that_does_not_do(
    package: None, monkeypatch: pytest.MonkeyPatch, driver: Driver, says: str
) -> None:
    def version(name: str) -> str:
        if name.endswith("-cu13"):
            return "0.5.0"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(nvidia_driver, "find_driver", lambda: driver)
    with pytest.raises(ProviderError, match=says):
        rtx_plugin.find_device(2 if len(driver.gpus) > 2 else 0)


def test_devices_have_cudas_numbers(package: None) -> None:
    assert [rtx_plugin.find_device(number).number for number in (0, 1)] == [0, 1]


def test_options_of_a_graph(package: None, static_bundle: Path) -> None:
    bundle = Bundle.open(resolve_bundle(), verify=False)
    options = rtx_plugin.OnnxRuntimeRtx("rtx").settings(bundle, "transformer.vectors")
    folder = Path(options.pop("nv_runtime_cache_path"))
    assert folder.name == f"onnxruntime-ep-nv-tensorrt-rtx-0.5.0-{bundle.digest[:16]}"
    assert folder.is_dir() and not folder.stat().st_mode & 0o077
    same = "prompt_embeds:{0}x48x192,prompt_weights:{0}x48"
    assert options == {
        "nv_profile_min_shapes": "clean_latents:1x480x384,noise:1x480x384,"
        f"{same.format(1)},positions:480x2",
        "nv_profile_opt_shapes": "clean_latents:1x576x384,noise:1x576x384,"
        f"{same.format(1)},positions:576x2",
        "nv_profile_max_shapes": "clean_latents:8x576x384,noise:1x576x384,"
        f"{same.format(8)},positions:576x2",
    }
    fixed = Bundle.open(static_bundle, verify=False)
    graph = next(name for name in fixed.manifest.graphs if name.startswith("transformer.vectors@"))
    options = rtx_plugin.OnnxRuntimeRtx("rtx").settings(fixed, graph)
    assert list(options) == ["nv_runtime_cache_path"]


@pytest.mark.skipif(os.name == "nt", reason="of POSIX modes")
def test_no_place_for_kernels_is_a_warning(package: None, tmp_path: Path) -> None:
    (tmp_path / "cache" / "rism" / "tensorrt-rtx").mkdir(parents=True)
    (tmp_path / "cache" / "rism" / "tensorrt-rtx").chmod(0o777)
    bundle = Bundle.open(resolve_bundle(), verify=False)
    with pytest.warns(RismWarning, match="cannot be kept .*others can write to"):
        options = rtx_plugin.OnnxRuntimeRtx("rtx").settings(bundle, "text_encoder")
    assert "nv_runtime_cache_path" not in options


def test_the_vae_encoder_runs_elsewhere(package: None, half: Path) -> None:
    bundle = Bundle.open(half)
    found = select_engines(bundle, "vectors", (RTX, "onnxruntime-cpu"), EngineRequest(device=1))
    assert {key: name for key, (name, _) in found.loads.items()} == {
        "text_encoder": "rtx:1",
        "vae_encoder": "cpu",
        "transformer": "rtx:1",
    }
    assert (found.precision, found.text_by, found.max_batch) == ("float16", "rtx", 8)
    with pytest.raises(ProviderError) as error:
        Segmenter.from_bundle(half, provider="rtx")
    assert str(error.value) == (
        f"provider {RTX} does not run vae_encoder (it can run elsewhere: add +onnxruntime-cuda, or "
        "+onnxruntime-cpu, to --provider)"
    )


def test_float32_is_refused_before_it_ends_the_process(package: None, tiny_bundle: Path) -> None:
    with pytest.raises(ProviderError, match=r"computes in float32, expected float16 or bfloat16"):
        Segmenter.from_bundle(tiny_bundle, provider="rtx+cpu")


def test_auto_tries_it_before_onnxruntimes_own(package: None, tiny_bundle: Path) -> None:
    segmenter = Segmenter.from_bundle(tiny_bundle)
    assert segmenter.provider == "cpu"
    assert segmenter.provider_reason.startswith(f"auto: {RTX} did not start (provider rtx (auto: ")
    assert segmenter.provider_reason.endswith("; this onnxruntime has no CUDA")
