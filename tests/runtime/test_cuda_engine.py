"""onnxruntime on a GPU, as far as that goes without one."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.capture_onnx import run_graph
from benchmarks.capture_variants import BASELINE, VARIANTS
from rism.runtime import ProviderError, Segmenter

OPTIONS = {
    "device_id": 0,
    "use_tf32": 0,
    "cudnn_conv_algo_search": "HEURISTIC",
    "arena_extend_strategy": "kSameAsRequested",
}


def test_sessions_of_users_and_of_benchmarks_are_opened_alike(
    tiny_master: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    handed: list[Any] = []

    def session(file: str, options: Any, providers: Any) -> Any:
        del options
        handed.append((Path(file).name, providers))
        raise RuntimeError("CUDA failure 100")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(ProviderError, match="CUDA failure 100"):
        Segmenter.from_bundle(tiny_master, provider="cuda")
    monkeypatch.setattr("benchmarks.capture_onnx._free", lambda _: None)
    with pytest.raises(ProviderError, match="CUDA failure 100"):
        run_graph(Path("graph.onnx"), {}, VARIANTS[BASELINE], device="cuda", runs=1)
    assert {name for name, _ in handed} >= {"vae_encoder.onnx", "graph.onnx"}
    assert all(given == [("CUDAExecutionProvider", OPTIONS)] for _, given in handed)
