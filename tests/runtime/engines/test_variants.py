"""Which engine variant fits a machine."""

import platform
from dataclasses import replace

import pytest

from rism.runtime.bundle.engine_spec import EngineVariant, PlanSpec
from rism.runtime.engines.nvidia_driver import Gpu
from rism.runtime.engines.providers import parse_provider, provider_names
from rism.runtime.engines.variants import Machine, misfit, this_platform
from rism.runtime.errors import InputError

GPU = Gpu(0, "RTX 4090", "8.9", 2**34)
RTX = Machine("tensorrt-rtx", "1.7.1.116", "linux-x86_64", GPU)
TRT = Machine("tensorrt", "10.13.0.35", "linux-x86_64", GPU)
PLANS = {"vae_encoder": PlanSpec("a.plan", None, None, {})}
FOR_RTX = EngineVariant(
    "a", "tensorrt-rtx", "1.7.1.116", "linux-x86_64", ("8.6", "8.9"), "fp16", False, PLANS
)
FOR_TRT = replace(FOR_RTX, target="tensorrt", version="10.13.0.35", compute_capabilities=("8.9",))


@pytest.mark.parametrize(
    ("variant", "machine", "reason"),
    [
        (FOR_RTX, RTX, None),
        (FOR_TRT, TRT, None),
        (FOR_RTX, TRT, "is for tensorrt-rtx, not tensorrt"),
        (FOR_RTX, replace(RTX, version="1.8.0.1"), "was built by 1.7.1.116, installed is 1.8.0.1"),
        (FOR_TRT, replace(TRT, version="10.13.0.36"), "was built by 10.13.0.35, installed is 10"),
        (FOR_RTX, replace(RTX, platform="windows-x86_64"), None),
        (FOR_RTX, replace(RTX, platform="linux-aarch64"), "was built for linux-x86_64, this is"),
        (FOR_TRT, replace(TRT, platform="windows-x86_64"), "was built for linux-x86_64, this is"),
        (
            FOR_RTX,
            replace(RTX, gpu=Gpu(1, "RTX 5090", "12.0", 0)),
            "runs on compute capability 8.6, 8.9, GPU 1 (RTX 5090) has 12.0",
        ),
        (FOR_TRT, replace(TRT, gpu=Gpu(0, "A10", "8.6", 0)), "runs on compute capability 8.9, GPU"),
    ],
)
def test_the_makers_rules(variant: EngineVariant, machine: Machine, reason: str | None) -> None:
    found = misfit(variant, machine)
    assert found is None if reason is None else (found or "").startswith(reason)


def test_this_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    for system, machine, name in (
        ("Linux", "x86_64", "linux-x86_64"),
        ("Windows", "AMD64", "windows-x86_64"),
        ("Linux", "aarch64", "linux-aarch64"),
        ("Darwin", "arm64", "darwin-aarch64"),
    ):
        monkeypatch.setattr(platform, "system", lambda value=system: value)
        monkeypatch.setattr(platform, "machine", lambda value=machine: value)
        assert this_platform() == name


def test_names_of_providers() -> None:
    assert parse_provider("cpu") == parse_provider("onnxruntime-cpu") == ("onnxruntime-cpu",)
    assert parse_provider("cuda") == ("onnxruntime-cuda",)
    assert parse_provider("auto") == ("auto",)
    assert parse_provider("tensorrt-rtx+cuda") == ("tensorrt-rtx", "onnxruntime-cuda")
    assert parse_provider("rtx+cpu") == ("onnxruntime-tensorrt-rtx", "onnxruntime-cpu")
    assert all(parse_provider(name) for name in provider_names())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "provider is '', expected one of auto, cpu, cuda, rtx, tensorrt, tensorrt-rtx, onn"),
        ("tensorrt-rtx+tpu", "provider is 'tpu', expected one of"),
        ("cpu+onnxruntime-cpu", r"expected different ones joined by \+"),
        ("cuda+tensorrt", "onnxruntime-cuda only as the last"),
        ("auto+cpu", "expected auto by itself"),
        ("tensorrt+auto", "expected auto by itself"),
    ],
)
def test_providers_that_are_none(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_provider(text)
