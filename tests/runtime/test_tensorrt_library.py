"""The real TensorRT for RTX: what it says of plans without a GPU, and that its names are there."""

import subprocess
import sys
from pathlib import Path

import pytest

from rism.runtime import tensorrt_api
from rism.runtime.driver import find_driver
from rism.runtime.errors import BundleError, ProviderError
from rism.runtime.tensorrt_library import Library, find_library, read_plan

pytest.importorskip("tensorrt_rtx")

# A plan needs no GPU to be built, but a crashed builder would take its process along.
BUILD = """
import sys
import tensorrt_rtx as trt
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
open(sys.argv[1], "wb").write(bytes(builder.build_serialized_network(network, config)))
"""


@pytest.fixture(scope="module")
def library() -> Library:
    return find_library("tensorrt-rtx")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file: Path = tmp_path_factory.mktemp("plan") / "relu.plan"
    subprocess.run([sys.executable, "-c", BUILD, file], check=True, timeout=120)
    return file.read_bytes()


def read(library: Library, plan: bytes) -> None:
    read_plan(library, plan, label="engine 'a' of graph 'b'", rebuild="rism build B")


def has_driver() -> bool:
    try:
        return bool(find_driver().gpus)
    except ProviderError:
        return False


def test_the_library_names_itself(library: Library) -> None:
    import tensorrt_rtx

    assert library.version == tensorrt_rtx.__version__
    assert library.cuda_major in (12, 13)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("TensorRt", None),
        ("RuntimeObject", "Runtime"),
        ("RefitterObject", "Refitter"),
        ("OnnxParserRefitterObject", "OnnxParserRefitter"),
        ("CudaEngine", "ICudaEngine"),
        ("ExecutionContext", "IExecutionContext"),
    ],
)
def test_every_name_that_is_called_is_there(
    library: Library, ours: str, theirs: str | None
) -> None:
    real = library.module if theirs is None else getattr(library.module, theirs)
    protocol = getattr(tensorrt_api, ours)
    names = [n for n in vars(protocol) if not n.startswith("_") or n == "__version__"]
    assert names
    assert [name for name in names if not hasattr(real, name)] == []
    config = library.module.IRuntimeConfig  # type: ignore[attr-defined]
    assert hasattr(config, "cuda_graph_strategy")
    assert hasattr(config, "set_execution_context_allocation_strategy")
    assert hasattr(library.module, "CudaGraphStrategy")


@pytest.mark.parametrize("junk", [b"", b"ftrt", b"\0" * 4096, b"PK\3\4" + bytes(999)])
def test_what_is_no_plan(library: Library, junk: bytes) -> None:
    with pytest.raises(BundleError) as error:
        read(library, junk)
    assert str(error.value).startswith(
        f"engine 'a' of graph 'b' is not a whole plan for TensorRT for RTX {library.version} ("
    )
    assert str(error.value).endswith(": copy the bundle again, or rism build B")


@pytest.mark.parametrize("keep", [100, 2000, -1])
def test_a_truncated_plan(library: Library, plan: bytes, keep: int) -> None:
    with pytest.raises(BundleError, match=r"is not a whole plan .*plan.header.size == blobSize"):
        read(library, plan[:keep])


def test_a_plan_of_another_version(library: Library, plan: bytes) -> None:
    """The maker writes its version into the plan's header."""
    major, minor, patch = (int(part) for part in library.version.split(".")[:3])
    at = plan.index(bytes([major, minor, patch]), 0, 64)
    other = bytearray(plan)
    other[at + 1] = minor + 1
    with pytest.raises(ProviderError) as error:
        read(library, bytes(other))
    assert "was built by another version than TensorRT for RTX" in str(error.value)
    assert f"runtime is TensorRT-RTX version {major}.{minor}.{patch}" in str(error.value)
    assert str(error.value).endswith(": rism build B")


@pytest.mark.skipif(has_driver(), reason="needs a machine without a driver")
def test_no_driver(library: Library, plan: bytes) -> None:
    with pytest.raises(ProviderError) as error:
        read(library, plan)
    assert str(error.value) == (
        f"TensorRT for RTX {library.version} found no NVIDIA driver, or one that is too old (CUDA "
        "driver version is insufficient for CUDA runtime version), expected one for its CUDA: "
        "install or update it and see nvidia-smi, or use --provider onnxruntime-cpu"
    )


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    find_library.cache_clear()
    with pytest.raises(ProviderError) as error:
        find_library("tensorrt")
    assert str(error.value).startswith(
        "provider tensorrt needs TensorRT, which cannot be imported (import of tensorrt halted"
    )
    assert str(error.value).endswith(": pip install 'rism[tensorrt,cuda]'")
