"""`rism doctor`, on this machine and on ones that lack something."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rism.runtime.bundle.reader import Bundle
from rism.runtime.diagnostics.selftest import record
from rism.runtime.engines import nvidia_driver, tensorrt_library
from rism.runtime.engines.nvidia_driver import find_driver
from rism.runtime.engines.providers import PROVIDERS
from rism.runtime.errors import ProviderError
from tests.cli.conftest import invoke
from tests.conftest import Reseal
from tests.runtime.engines.fake_tensorrt import FakeTensorRt, HostDevice, library, stand_in, variant
from tests.runtime.engines.profiles import ALL

OLD = {"name": "old", "version": "1.6.0.1"}


def run(*arguments: object, code: int = 0) -> list[str]:
    return invoke("doctor", *arguments, code=code).output.splitlines()


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise ProviderError("there is no NVIDIA driver here: install it")

    monkeypatch.setattr(nvidia_driver, "find_driver", absent)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    """A machine with a GPU and TensorRT for RTX, as far as the edge to both."""
    fake = stand_in(monkeypatch)

    def find(target: str) -> Any:
        if target == "tensorrt":
            raise ProviderError("provider tensorrt needs TensorRT: pip install it")
        return library(fake, target)

    monkeypatch.setattr(tensorrt_library, "find_library", find)
    return fake


def test_a_machine_without_a_gpu(tiny_bundle: Path, no_driver: None) -> None:
    lines = run(tiny_bundle)
    assert "driver       none: there is no NVIDIA driver here: install it" in lines
    text = "\n".join(lines)
    assert "provider     onnxruntime-cpu: ready, onnxruntime 1." in text
    assert "provider     tensorrt-rtx: no: " in text
    assert f"bundle       {tiny_bundle}: tiny in float32, 8 files verified" in lines
    assert lines[-1] == f"self-test    none stored: rism doctor {tiny_bundle} --record"


def test_record_and_check(tiny_bundle: Path, no_driver: None) -> None:
    lines = run(tiny_bundle, "--record")
    (made,) = [line for line in lines if line.startswith("recorded ")]
    assert made.startswith("recorded     vectors of 5 graphs by onnxruntime-cpu 1.")
    for graph in Bundle.open(tiny_bundle).manifest.graphs:
        (line,) = [x for x in lines if x.startswith(f"self-test    onnxruntime-cpu: {graph} ")]
        assert line.split(f"{graph} ")[1].startswith("ok, ")
    assert run(tiny_bundle)[-1].startswith("self-test    onnxruntime-cpu: transformer.scores ok")


def test_wrong_numbers_are_a_failure(tiny_bundle: Path, reseal: Reseal, no_driver: None) -> None:
    record(tiny_bundle)
    weights = tiny_bundle / "text_encoder.weights"
    weights.write_bytes((np.fromfile(weights, np.float32) * 1.1).tobytes())
    lines = run(reseal(tiny_bundle), code=1)
    assert "onnxruntime-cpu: text_encoder FAILED, prompt_embeds off by 0.1" in "\n".join(lines)
    assert lines[-1] == (
        "error: self-test failed: onnxruntime-cpu: text_encoder: prompt_embeds off by 0.1, at "
        "most 0.002"
    )


def test_json(tiny_bundle: Path, no_driver: None) -> None:
    record(tiny_bundle)
    data = json.loads("\n".join(run(tiny_bundle, "--json")))
    assert data["bundle"]["verified"] is True
    assert data["driver"]["error"].startswith("there is no NVIDIA driver")
    assert {each["provider"]: each["ready"] for each in data["providers"]}["onnxruntime-cpu"]
    (memory,) = data["memory"]
    assert (memory["on"], memory["fits"]) == ("CPU", "all loaded") and memory["bytes"] > 2**20
    (trial,) = data["self_test"]
    assert (trial["name"], trial["ok"]) == ("onnxruntime-cpu", True)
    assert all(each["ok"] and each["error"] < 1e-6 for each in trial["comparisons"])


@pytest.mark.parametrize("provider", ["tensorrt-rtx", "onnxruntime-cuda"])
def test_what_was_asked_for_and_is_not_there(
    tiny_bundle: Path, no_driver: None, provider: str
) -> None:
    record(tiny_bundle)
    assert run(tiny_bundle, "--provider", provider, code=1)[-1].startswith("error: ")


class TestEngines:
    @pytest.fixture
    def built(self, tiny_bundle: Path, reseal: Reseal) -> Path:
        new, old = (variant(tiny_bundle, ALL, **each) for each in ({}, OLD))
        reseal(tiny_bundle, lambda data: data.update(engines=[new, old]))
        record(tiny_bundle)
        return tiny_bundle

    def test_they_are_listed_and_tested(self, built: Path, gpu: FakeTensorRt) -> None:
        text = "\n".join(run(built))
        assert "driver       CUDA 13.0, 1 GPUs" in text
        assert "gpu          0: RTX 4090, compute capability 8.9, 24.0 GiB" in text
        assert "provider     tensorrt-rtx: ready, TensorRT for RTX 1.7.1.116 on GPU 0 (RTX" in text
        assert (
            "engine       rtx-fp16: tensorrt-rtx 1.7.1.116, fp16, compute capability 8.6, 8.9, 3 "
            "graphs: fits here"
        ) in text
        assert "'old' was built by 1.6.0.1, installed is 1.7.1.116: rism build" in text
        assert "self-test    engine 'rtx-fp16' (tensorrt-rtx, fp16): vae_encoder ok" in text

    def test_a_silent_error_is_found(
        self, built: Path, gpu: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def half_wrong(self: HostDevice, array: np.ndarray) -> np.ndarray:
            return array * np.float32(0.5)

        monkeypatch.setattr(HostDevice, "download", half_wrong)
        lines = run(built, code=1)
        assert "engine 'rtx-fp16' (tensorrt-rtx, fp16): text_encoder: prompt_embeds" in lines[-1]

    def test_one_that_was_asked_for_must_run(self, built: Path, gpu: FakeTensorRt) -> None:
        assert run(built, "--engine", "rtx-fp16")[-1].startswith("self-test    engine 'rtx-fp16'")
        lines = run(built, "--engine", "old", code=1)
        assert "'old' was built by 1.6.0.1, installed is 1.7.1.116" in lines[-1]

    def test_one_that_fits_and_does_not_start(self, built: Path, gpu: FakeTensorRt) -> None:
        gpu.fails = {"create_execution_context"}
        assert "gives no context on tensorrt-rtx:0" in run(built, code=1)[-1]


def test_the_driver_is_really_asked(tiny_bundle: Path) -> None:
    """Nothing replaced: whatever this machine has."""
    find_driver.cache_clear()
    lines = run(tiny_bundle)
    assert sum(line.startswith("provider ") for line in lines) == len(PROVIDERS)
