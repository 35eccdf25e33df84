"""The real TensorRT for RTX: what it says of plans without a GPU, and that its names are there."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from rism.runtime.distribution import install_hint
from rism.runtime.engines import tensorrt_api
from rism.runtime.engines.nvidia_driver import find_driver
from rism.runtime.engines.tensorrt import WEIGHT_TYPES
from rism.runtime.engines.tensorrt_library import Library, find_library
from rism.runtime.errors import ProviderError
from tests.paths import ROOT

pytest.importorskip("tensorrt_rtx")


# A plan needs no GPU to be built. All of it in a child: the library has crashed in builds, and
# once did not return while a runtime was made.
CHILD = """
import json, sys
import tensorrt_rtx as trt
from rism.runtime.engines.tensorrt_library import find_library, read_plan
builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
x = network.add_input("x", trt.float32, (-1, 4))
y = network.add_activation(x, trt.ActivationType.RELU).get_output(0)
y.name = "y"
network.mark_output(y)
config = builder.create_builder_config()
profile = builder.create_optimization_profile()
profile.set_shape("x", (1, 4), (2, 4), (8, 4))
config.add_optimization_profile(profile)
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM89, 0)
plan = bytes(builder.build_serialized_network(network, config))
# The maker writes its version into the plan's header.
version = bytes(int(part) for part in trt.__version__.split(".")[:3])
other = bytearray(plan)
other[plan.index(version, 0, 64) + 1] += 1
cases = {
    "empty": b"", "four bytes": plan[:4], "zeros": bytes(4096), "zip": b"PK\\3\\4" + bytes(999),
    "header": plan[:100], "start": plan[:2000], "end missing": plan[:-1],
    "other version": bytes(other), "whole": plan,
}
said = {}
for name, case in cases.items():
    try:
        label, library = "engine 'a' of graph 'b'", find_library("tensorrt-rtx")
        read_plan(library, case, label=label, rebuild="rism build B")
        said[name] = ["none", ""]
    except Exception as error:
        said[name] = [type(error).__name__, str(error)]
json.dump(said, sys.stdout)
"""


@pytest.fixture(scope="module")
def library() -> Library:
    return find_library("tensorrt-rtx")


@pytest.fixture(scope="module")
def said() -> dict[str, list[str]]:
    """What reading each plan raised: the kind of error, and the message."""
    run = subprocess.run(
        [sys.executable, "-c", CHILD],
        check=True, timeout=900, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return dict(json.loads(run.stdout))


def has_driver() -> bool:
    try:
        return bool(find_driver().gpus)
    except ProviderError:
        return False


def test_the_library_names_itself(library: Library) -> None:
    import tensorrt_rtx

    assert library.version == tensorrt_rtx.__version__
    assert library.cuda_major in (12, 13)


def test_every_name_that_is_called_is_there(library: Library) -> None:
    trt: Any = library.module
    for ours, real in {
        "TensorRt": trt, "RuntimeObject": trt.Runtime, "RefitterObject": trt.Refitter,
        "OnnxParserRefitterObject": trt.OnnxParserRefitter, "EngineObject": trt.ICudaEngine,
        "ExecutionContext": trt.IExecutionContext, "RuntimeConfig": trt.IRuntimeConfig,
        "RuntimeCacheObject": trt.IRuntimeCache,
    }.items():  # fmt: skip
        protocol = getattr(tensorrt_api, ours)
        said = [*vars(protocol), *protocol.__annotations__]
        names = [n for n in said if not n.startswith("_") or n == "__version__"]
        assert names
        assert [name for name in names if not hasattr(real, name)] == []
    assert hasattr(trt, "CudaGraphStrategy")
    assert hasattr(trt.DynamicShapesKernelSpecializationStrategy, "EAGER")
    assert [name for name in WEIGHT_TYPES.values() if not hasattr(trt, name)] == []


def test_what_is_no_plan(library: Library, said: dict[str, list[str]]) -> None:
    for junk in ("empty", "four bytes", "zeros", "zip", "header", "start", "end missing"):
        kind, text = said[junk]
        assert kind == "BundleError"
        assert text.startswith(
            f"engine 'a' of graph 'b' is not a whole plan for TensorRT for RTX {library.version} ("
        )
        assert text.endswith(": copy the bundle again, or rism build B")
        assert "\n" not in text
        if junk in ("header", "start", "end missing"):
            assert "plan.header.size == blobSize" in text


def test_a_plan_of_another_version(library: Library, said: dict[str, list[str]]) -> None:
    kind, text = said["other version"]
    major, minor, patch = library.version.split(".")[:3]
    assert kind == "ProviderError"
    assert "was built by another version than TensorRT for RTX" in text
    assert f"runtime is TensorRT-RTX version {major}.{minor}.{patch}" in text
    assert text.endswith(": rism build B")


@pytest.mark.skipif(has_driver(), reason="needs a machine without a driver")
def test_no_driver(library: Library, said: dict[str, list[str]]) -> None:
    assert said["whole"] == [
        "ProviderError",
        f"TensorRT for RTX {library.version} found no NVIDIA driver, or one that is too old (CUDA "
        "driver version is insufficient for CUDA runtime version), expected one for its CUDA: "
        "install or update it and see nvidia-smi, or use --provider onnxruntime-cpu",
    ]


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    find_library.cache_clear()
    with pytest.raises(ProviderError) as error:
        find_library("tensorrt")
    assert str(error.value).startswith(
        "provider tensorrt needs TensorRT, which cannot be imported (import of tensorrt halted"
    )
    assert str(error.value).endswith(f": {install_hint('tensorrt,cuda')}")
