"""On a machine with a GPU: real plans of the tiny bundle, against onnxruntime on the CPU."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rism.runtime import Segmenter
from rism.runtime.bundle.reader import Bundle
from rism.runtime.diagnostics.selftest import check, check_variant, onnx_loads, record
from rism.runtime.engines.nvidia_driver import find_driver
from rism.runtime.engines.selection import EngineRequest
from rism.runtime.engines.tensorrt_library import LIBRARIES
from rism.runtime.engines.variants import this_platform
from tests.conftest import Reseal
from tests.runtime.engines.fake_tensorrt import variant
from tests.runtime.engines.profiles import ALL, FIXED

# One graph: module, ONNX file, plan, compute capability ("8.9"), name=min/opt/max ...
BUILD = """
import importlib, sys
trt = importlib.import_module(sys.argv[1])
log = trt.Logger(trt.Logger.WARNING)
builder = trt.Builder(log)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, log)
if not parser.parse_from_file(sys.argv[2]):
    sys.exit("\\n".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
config, profile = builder.create_builder_config(), builder.create_optimization_profile()
for each in sys.argv[5:]:
    name, shapes = each.split("=")
    profile.set_shape(name, *(tuple(map(int, s.split(","))) for s in shapes.split("/")))
config.add_optimization_profile(profile)
if sys.argv[1] == "tensorrt_rtx":
    config.num_compute_capabilities = 1
    capability = getattr(trt.ComputeCapability, "SM" + sys.argv[4].replace(".", ""))
    config.set_compute_capability(capability, 0)
else:
    config.clear_flag(trt.BuilderFlag.TF32)
open(sys.argv[3], "wb").write(bytes(builder.build_serialized_network(network, config)))
"""


def build(folder: Path, target: str, capability: str, graphs: dict[str, Any]) -> dict[str, Any]:
    """Return what the manifest says of real plans, which are then in the folder."""
    manifest = Bundle.open(folder).manifest
    entry = variant(
        folder, graphs, name="real", target=target, platform=this_platform(), precision="fp32",
        version=importlib.import_module(LIBRARIES[target][0]).__version__,
        compute_capabilities=[capability],
    )  # fmt: skip
    for graph, shapes in graphs.items():
        spec = manifest.graphs[graph]
        given = [
            f"{spec.inputs[name].name}={'/'.join(','.join(map(str, s)) for s in each)}"
            for name, each in shapes.items()
        ]
        plan = folder / entry["graphs"][graph]["file"]
        command = [sys.executable, "-c", BUILD, LIBRARIES[target][0], str(folder / spec.file)]
        subprocess.run([*command, str(plan), capability, *given], check=True, timeout=900)
    return entry


def check_masks(found: Any, expected: Any, provider: str) -> None:
    for ours, true in zip(found, expected, strict=True):
        assert (ours.mask != true.mask).mean() < 0.01
        np.testing.assert_allclose(ours.refined, true.refined, atol=0.01)
        assert (ours.provider, ours.precision) == (provider, "float32")


@pytest.mark.parametrize("fixed", [False, True], ids=["any shape", "one shape"])
@pytest.mark.parametrize("target", list(LIBRARIES))
@pytest.mark.gpu
def test_masks_are_those_of_the_cpu(
    tiny_bundle: Path, reseal: Reseal, colours: np.ndarray, target: str, fixed: bool
) -> None:
    pytest.importorskip("cupy")
    pytest.importorskip(LIBRARIES[target][0])
    gpu = find_driver().gpu(0)
    served = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
    if target == "tensorrt-rtx" and gpu.compute_capability not in served:
        pytest.skip(f"TensorRT for RTX does not serve {gpu.name}")
    record(tiny_bundle)
    graphs = {**ALL, "transformer.vectors": FIXED} if fixed else ALL
    entry = build(tiny_bundle, target, gpu.compute_capability, graphs)
    reseal(tiny_bundle, lambda data: data.update(engines=[entry]))
    words = ["red", "the green", "blue"]
    segmenter = Segmenter.from_bundle(tiny_bundle, provider=target)
    expected = Segmenter.from_bundle(tiny_bundle, provider="cpu").segment(colours, words)
    for _ in range(3):  # bound, captured, launched
        check_masks(segmenter.segment(colours, words), expected, f"{target}:0")
    if not fixed:
        assert all(each.passed for each in check_variant(Bundle.open(tiny_bundle), "real"))


@pytest.mark.gpu
def test_onnxruntimes_masks_are_those_of_the_cpu(tiny_bundle: Path, colours: np.ndarray) -> None:
    """On the stream of post-processing, without waiting in between."""
    pytest.importorskip("cupy")
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA")
    record(tiny_bundle)
    words = ["red", "the green", "blue"]
    segmenter = Segmenter.from_bundle(tiny_bundle, provider="cuda")
    assert segmenter.provider_reason == "asked for"  # nothing is copied
    here = Segmenter.from_bundle(tiny_bundle, provider="cpu")
    for image in (colours, colours[::-1], colours[:, ::-1], colours):
        expected = here.segment(image, words)
        check_masks(segmenter.segment(image, words), expected, "cuda:0")
    loads = onnx_loads(Bundle.open(tiny_bundle), "cuda", EngineRequest())
    compared = check(Bundle.open(tiny_bundle), loads, precision="float32")
    assert compared and all(each.passed for each in compared)


def test_the_plans_of_that_test_can_be_built(tiny_bundle: Path) -> None:
    """Without a GPU, as far as that goes."""
    pytest.importorskip("tensorrt_rtx")
    entry = build(tiny_bundle, "tensorrt-rtx", "8.9", {"transformer.vectors": FIXED})
    plan = tiny_bundle / entry["graphs"]["transformer.vectors"]["file"]
    assert plan.stat().st_size > 10_000
