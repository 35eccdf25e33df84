"""Which engine runs which graph, and what is said where none does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rism.runtime import InputError, ProviderError, Segmenter
from rism.runtime.engines import nvidia_driver, selection
from rism.runtime.engines.nvidia_driver import Driver
from tests.conftest import Reseal
from tests.runtime.engines.fake_tensorrt import ADA, FakeTensorRt, variant
from tests.runtime.engines.profiles import ALL, transformer


def test_a_graph_without_a_plan_is_an_error_that_says_what_helps(built: Any) -> None:
    bundle = built({"transformer.vectors": transformer()})
    with pytest.raises(ProviderError) as error:
        Segmenter.from_bundle(bundle, provider="tensorrt-rtx")
    assert str(error.value) == (
        "no engine of this bundle fits tensorrt-rtx 1.7.1.116 on GPU 0 (RTX 4090, 8.9): "
        "'rtx-fp16' has no plan of text_encoder, vae_encoder, only of transformer.vectors (the "
        "others can run elsewhere: add +onnxruntime-cuda to --provider): "
        f"rism build {bundle} --target tensorrt-rtx --gpu sm89"
    )


def test_a_mix_that_was_asked_for_is_named(built: Any, colours: np.ndarray) -> None:
    bundle = built({"transformer.vectors": transformer()})
    segmenter = Segmenter.from_bundle(bundle, provider="tensorrt-rtx+onnxruntime-cpu")
    result = segmenter.segment(colours, "red")
    assert result.provider == segmenter.provider == "tensorrt-rtx:0+cpu"
    assert result.precision == "float16"


def test_auto_says_why_an_engine_did_not_start(built: Any, trt: FakeTensorRt) -> None:
    bundle = built()
    trt.fails = {"deserialize_cuda_engine"}
    segmenter = Segmenter.from_bundle(bundle)
    assert segmenter.provider == "cpu"
    assert segmenter.precision == "float32"
    assert segmenter.provider_reason.startswith(
        "auto: tensorrt-rtx did not start (TensorRT for RTX 1.7.1.116 cannot load engine"
    )
    assert segmenter.provider_reason.endswith("; this onnxruntime has no CUDA")


def test_engines_of_all_graphs_need_no_onnxruntime(
    built: Any, trt: FakeTensorRt, monkeypatch: Any
) -> None:
    bundle = built()

    def absent() -> Any:
        raise ProviderError("onnxruntime cannot be imported")

    monkeypatch.setattr(selection, "best_onnxruntime_provider", absent)
    assert Segmenter.from_bundle(bundle).provider == "tensorrt-rtx:0"
    trt.fails = {"create_execution_context"}
    with pytest.raises(ProviderError, match="gives no context"):
        Segmenter.from_bundle(bundle)


def test_fp8_is_for_who_asks(tiny_bundle: Path, reseal: Reseal, trt: FakeTensorRt) -> None:
    entries = [
        variant(tiny_bundle, ALL, name="a", precision="fp8"),
        variant(tiny_bundle, ALL, name="b", precision="fp16"),
        variant(tiny_bundle, ALL, name="c", precision="fp32"),
    ]
    bundle = reseal(tiny_bundle, lambda data: data.update(engines=entries))
    for wish, precision in (
        ({}, "float32"),
        ({"precision": "fp16"}, "float16"),
        ({"precision": "fp8"}, "fp8"),
        ({"engine": "a"}, "fp8"),
        ({"engine": "b", "provider": "auto"}, "float16"),
    ):
        asked = {"provider": "tensorrt-rtx", **wish}
        assert Segmenter.from_bundle(bundle, **asked).precision == precision
    with pytest.raises(InputError, match=r"engine is 'd', this bundle has a, b, c: see rism"):
        Segmenter.from_bundle(bundle, provider="tensorrt-rtx", engine="d")
    with pytest.raises(ProviderError, match=r"'a' computes in fp8, not bf16; 'b' computes"):
        Segmenter.from_bundle(bundle, provider="tensorrt-rtx", precision="bf16")


@pytest.mark.parametrize("provider", ["cpu", "auto"])
def test_onnxruntime_has_the_bundles_precision(tiny_master: Path, provider: str) -> None:
    same = Segmenter.from_bundle(tiny_master, provider=provider, precision="fp32")
    assert same.precision == "float32"
    with pytest.raises(ProviderError) as error:
        Segmenter.from_bundle(tiny_master, provider=provider, precision="fp8")
    assert f"rism build {tiny_master} --target tensorrt-rtx --precision fp8" in str(error.value)
    assert "float32" in str(error.value)
    with pytest.raises(InputError, match="precision is 'int4', expected one of fp32, fp16"):
        Segmenter.from_bundle(tiny_master, provider=provider, precision="int4")


def test_an_engine_is_not_onnxruntimes(built: Any) -> None:
    with pytest.raises(InputError, match="engine 'rtx-fp16' was asked for, provider cpu runs"):
        Segmenter.from_bundle(built(), provider="cpu", engine="rtx-fp16")


def test_a_bundle_without_engines(tiny_master: Path, built: Any) -> None:
    with pytest.raises(ProviderError) as error:
        Segmenter.from_bundle(tiny_master, provider="tensorrt-rtx")
    assert str(error.value) == (
        "this bundle has no engine for tensorrt-rtx (it has none): "
        f"rism build {tiny_master} --target tensorrt-rtx"
    )
    with pytest.raises(ProviderError, match=r"\(it has 'rtx-fp16' for tensorrt-rtx\): rism bu"):
        Segmenter.from_bundle(built(), provider="tensorrt")


def test_a_driver_of_another_cuda(built: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(nvidia_driver, "find_driver", lambda: Driver((12, 4), ADA.gpus))
    says = (
        "NVIDIA's driver serves CUDA 12.4, TensorRT for RTX 1.7.1.116 needs CUDA 13.0: update the "
        "driver, or install tensorrt-rtx-cu12"
    )
    with pytest.raises(ProviderError, match=says):
        Segmenter.from_bundle(built(), provider="tensorrt-rtx")
