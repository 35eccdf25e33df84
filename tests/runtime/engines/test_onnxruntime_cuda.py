"""onnxruntime on a GPU, as far as that goes without one.

Graphs run in the real onnxruntime, bound to memory by the real `IOBinding`; only that the memory
is a GPU's is played.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from rism.runtime import ProviderError, Segmenter
from rism.runtime.bundle.reader import Bundle
from rism.runtime.diagnostics import environment
from rism.runtime.engines import nvidia_driver, onnxruntime_cuda
from rism.runtime.engines.nvidia_driver import Driver, Gpu
from rism.runtime.engines.onnxruntime_cuda import CudaEngine, OnnxRuntimeCuda
from rism.runtime.engines.providers import PROVIDERS
from tests.runtime.engines.fake_tensorrt import HostDevice

OPTIONS = {
    "device_id": 0,
    "use_tf32": 0,
    "cudnn_conv_algo_search": "HEURISTIC",
    "arena_extend_strategy": "kSameAsRequested",
}


class CudaSession:
    """A session whose memory is said to be a GPU's, but for the inputs named in `read_by_host`."""

    read_by_host: tuple[str, ...] = ()

    def __init__(self, real: Any, device: HostDevice) -> None:
        self._real, self._device = real, device
        self.bound: list[dict[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        assert name != "run", "outputs are copied to the host"
        return getattr(self._real, name)

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_input_memory_infos(self) -> list[Any]:
        names = [each.name for each in self._real.get_inputs()]
        return [SimpleNamespace(name="Cpu" if n in self.read_by_host else "Cuda") for n in names]

    def io_binding(self) -> "CudaBinding":
        self.bound.append({})
        return CudaBinding(self._real.io_binding(), self.bound[-1])

    def run_with_iobinding(self, binding: "CudaBinding", how: Any) -> None:
        assert self._device.depth, "the GPU is not the current one"
        assert how.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        self._real.run_with_iobinding(binding.real, how)


class CudaBinding:
    def __init__(self, real: Any, bound: dict[str, Any]) -> None:
        self.real, self._bound = real, bound

    def bind_input(
        self, name: str, kind: str, number: int, dtype: Any, shape: Any, pointer: int
    ) -> None:
        assert (kind, number) == ("cuda", 0)
        self._bound[name] = pointer
        self.real.bind_input(name, "cpu", 0, dtype, shape, pointer)

    def bind_cpu_input(self, name: str, array: np.ndarray) -> None:
        self._bound[name] = array
        self.real.bind_cpu_input(name, array)

    def bind_output(self, name: str, kind: str, number: int) -> None:
        assert (kind, number) == ("cuda", 0)
        self.real.bind_output(name, "cpu")

    def get_outputs(self) -> list[Any]:
        return self.real.get_outputs()


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch, device: HostDevice) -> list[Any]:
    """Provider options and sessions, in an onnxruntime that has CUDA, beside a CuPy that works."""
    opened: list[Any] = []
    real = onnxruntime.InferenceSession

    def session(file: str, options: Any, providers: Any, **asked: Any) -> Any:
        own = real(file, options, providers=["CPUExecutionProvider"])
        if providers == ["CPUExecutionProvider"]:
            return own
        ((name, given),) = providers
        assert name == "CUDAExecutionProvider"
        opened.append((given, CudaSession(own, device)))
        return opened[-1][1]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(onnxruntime_cuda, "open_device", lambda _: device)
    return opened


def test_a_picture_stays_on_the_gpu_until_it_is_an_answer(
    tiny_master: Path, device: HostDevice, sessions: list[Any], colours: np.ndarray
) -> None:
    words = ["red", "the green", "the red"]
    expected = Segmenter.from_bundle(tiny_master, provider="cpu").segment(colours, words)
    segmenter = Segmenter.from_bundle(tiny_master, provider="cuda")
    assert segmenter.provider_reason == "asked for"
    assert [given for given, _ in sessions] == [{**OPTIONS, "user_compute_stream": "77"}] * 3
    state = segmenter.set_image(colours)
    tokens = state.plan.tokens
    for run in range(2):
        del device.downloaded[:], device.uploaded[:]
        for found, true in zip(segmenter.segment(state, words), expected, strict=True):
            np.testing.assert_allclose(found.score_map, true.score_map, atol=1e-6)
            np.testing.assert_array_equal(found.mask, true.mask)
            assert (found.provider, found.precision) == ("cuda:0", "float32")
        assert device.downloaded == [(3 * (3 * 4 * tokens + 48),), (3, tokens, 8)]
        first = [(3, 8), (3, 8), (300, 3)] if run == 0 else []
        assert device.uploaded == [*first, (3, 8), (tokens, 2)]
    # What lies there is bound where it lies.
    noise = device.pointer(segmenter._noise.on(device))
    assert any(noise in each.bound[-1].values() for _, each in sessions)


def test_inputs_that_the_graph_reads_on_the_host_stay_there(
    tiny_master: Path, device: HostDevice, sessions: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(tiny_master)
    spec = bundle.manifest.graphs["vae_encoder"]
    monkeypatch.setattr(CudaSession, "read_by_host", ("image",))
    engine = CudaEngine(bundle.file(spec.file), spec, there=device, backend=OnnxRuntimeCuda("cuda"))
    image = np.linspace(0, 1, 3 * 16 * 24, dtype=np.float64).reshape(1, 3, 16, 24)
    there = device.empty(image.shape, "float32")
    device.copy(image, into=there)
    del device.uploaded[:]
    found, other = (engine.run({"image": each}) for each in (image, there))
    assert not device.uploaded and device.downloaded.count(image.shape) == 1
    np.testing.assert_array_equal(found["clean_latents"], other["clean_latents"])
    assert isinstance(sessions[0][1].bound[0]["image"], np.ndarray)


def test_a_run_that_fails(
    tiny_master: Path, sessions: list[Any], colours: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = Segmenter.from_bundle(tiny_master, provider="cuda")

    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA failure 2: out of memory\n(more)")

    monkeypatch.setattr(CudaSession, "run_with_iobinding", fail)
    with pytest.raises(ProviderError, match=r"encoder.onnx failed on cuda:0 \(CUDA failure 2"):
        segmenter.segment(colours, "red")


def test_without_cupy_it_is_said_that_outputs_are_copied(
    tiny_master: Path, sessions: list[Any], colours: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(_: int) -> None:
        raise ProviderError("CuPy cannot be imported")

    monkeypatch.setattr(onnxruntime_cuda, "open_device", absent)
    monkeypatch.setattr(CudaSession, "__getattr__", lambda self, name: getattr(self._real, name))
    why = "its outputs are copied to the host and post-processed there: CuPy cannot be imported"
    asked = Segmenter.from_bundle(tiny_master, provider="cuda")
    assert asked.provider_reason == f"asked for; {why}"
    auto = Segmenter.from_bundle(tiny_master)
    assert auto.provider_reason == f"auto: onnxruntime has CUDA; {why}"
    assert all("user_compute_stream" not in given for given, _ in sessions)
    assert asked.segment(colours, "red").mask.any()
    driver = Driver((13, 0), (Gpu(0, "H100", "9.0", 0),))
    monkeypatch.setattr(nvidia_driver, "find_driver", lambda: driver)
    said = environment.probe(PROVIDERS["onnxruntime-cuda"])
    assert said.ready and said.text.endswith(f" on GPU 0 (H100, 9.0); {why}")
