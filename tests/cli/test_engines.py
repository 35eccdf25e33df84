"""Engines on the command line: asked for, listed, refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rism.runtime.diagnostics.selftest import record
from rism.runtime.engines import nvidia_driver
from rism.runtime.engines.nvidia_driver import Driver
from tests.cli.conftest import Run, invoke
from tests.runtime.engines.fake_tensorrt import ADA, FakeTensorRt, HostDevice, stand_in, variant
from tests.runtime.engines.profiles import ALL, transformer

Reseal = Callable[..., Path]
Refused = Callable[[str], None]


@pytest.fixture
def built(tiny_bundle: Path, reseal: Reseal) -> Path:
    entry = variant(tiny_bundle, {**ALL, "transformer.vectors": transformer(1)}, stripped=True)
    entry |= {"precision": "fp8"}
    scales = tiny_bundle / "scales.json"
    scales.write_text("{}")
    return reseal(
        tiny_bundle,
        lambda data: data.update(engines=[entry], calibration={"file": "scales.json"}),
    )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    """A machine with a GPU and TensorRT for RTX."""
    fake = FakeTensorRt()
    stand_in(monkeypatch, fake, HostDevice())
    return fake


@pytest.fixture
def ask(built: Path, picture: Path, machine: FakeTensorRt, workplace: Path) -> Run:
    """Run with the built bundle on that machine, in an empty folder."""
    return lambda *flags, **more: invoke("run", picture, "green", "--bundle", built, *flags, **more)


def test_inspect(built: Path) -> None:
    record(built)
    lines = invoke("inspect", built).output.splitlines()
    for line in (
        "engine     rtx-fp16: tensorrt-rtx 1.7.1.116 for linux-x86_64, compute capability 8.6, "
        "8.9, fp8, weights from the bundle",
        "           vae_encoder (engines/rtx-fp16/vae_encoder.plan)",
        "           <- image [1, 3, 8, 8] to [1, 3, 256, 256], best [1, 3, 96, 160]",
        "           <- prompt_weights [1, 8]",
        "scales     scales.json for FP8 engines",
    ):
        assert line in lines
    (vectors,) = [line for line in lines if line.startswith("self-test  ")]
    assert vectors.startswith("self-test  selftest.bin by onnxruntime-cpu 1.")
    data = json.loads(invoke("inspect", built, "--json").output)
    assert data["engines"][0]["name"] == "rtx-fp16"
    assert data["engines"][0]["graphs"]["vae_encoder"]["shapes"]["image"]["min"] == [1, 3, 8, 8]
    assert data["self_test"]["file"] == "selftest.bin"
    assert data["calibration"] == "scales.json"


@pytest.mark.parametrize(
    "flags",
    [
        ["--provider", "tensorrt-rtx"],
        ["--provider", "tensorrt-rtx", "--precision", "fp8"],
        ["--engine", "rtx-fp16"],
        [],
    ],
)
def test_a_run_names_what_ran(ask: Run, flags: list[str]) -> None:
    shown = ask("--json", "-v", *flags)
    (result,) = json.loads(shown.stdout)
    assert (result["provider"], result["precision"]) == ("tensorrt-rtx:0", "fp8")
    if not flags:
        why = "provider tensorrt-rtx:0: auto: an engine of the bundle fits: engine"
        assert why in shown.stderr


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--provider", "tpu"], 2, "provider is 'tpu', expected one of auto, cpu, cuda, rtx"),
        (["--provider", "cpu+cuda"], 2, "expected different ones joined by +"),
        (["--precision", "int4"], 2, "int4"),
        (["--engine", "x"], 1, "error: engine is 'x', this bundle has rtx-fp16: see rism inspect"),
        (["--provider", "cpu", "--precision", "fp8"], 1, "error: provider cpu computes in float32"),
        (["--provider", "tensorrt"], 1, "error: this bundle has no engine for tensorrt (it has"),
    ],
)
def test_what_cannot_be(ask: Run, workplace: Path, flags: list[str], code: int, says: str) -> None:
    assert says in ask(*flags, code=code).stderr
    assert not list(workplace.iterdir())


NONE_FITS = (
    "error: no engine of this bundle fits tensorrt-rtx 1.7.1.116 on GPU 0 (RTX 4090, 8.9): "
    "'rtx-fp16' {reason}: rism build {bundle} --target tensorrt-rtx --gpu sm89"
)
REBUILD = "rism build {bundle} --target tensorrt-rtx --gpu sm89 --precision fp8"
# What is wrong with the engine, by key of the manifest, and what is said of it.
MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "an older library": (
        {"version": "1.6.0.22"},
        NONE_FITS.replace("{reason}", "was built by 1.6.0.22, installed is 1.7.1.116"),
    ),
    "another GPU": (
        {"compute_capabilities": ["8.6", "12.0"]},
        NONE_FITS.replace(
            "{reason}", "runs on compute capability 8.6, 12.0, GPU 0 (RTX 4090) has 8.9"
        ),
    ),
    "another platform": (
        {"platform": "linux-aarch64"},
        NONE_FITS.replace("{reason}", "was built for linux-aarch64, this is linux-x86_64"),
    ),
    "another target": (
        {"target": "openvino"},
        "error: this bundle has no engine for tensorrt-rtx (it has 'rtx-fp16' for openvino): "
        "rism build {bundle} --target tensorrt-rtx",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_an_engine_of_elsewhere(
    built: Path, refused: Refused, machine: FakeTensorRt, reseal: Reseal, name: str
) -> None:
    keys, says = MISFITS[name]
    reseal(built, lambda data: data["engines"][0].update(keys))
    refused(says)
    assert machine.calls == []


@pytest.fixture
def refused(ask: Run, built: Path) -> Refused:
    """Run on TensorRT for RTX, which fails with this line."""

    def check(says: str) -> None:
        shown = ask("--provider", "tensorrt-rtx", code=1)
        assert shown.stderr == says.replace("{bundle}", str(built)) + "\n"
        assert shown.stdout == ""

    return check


@pytest.mark.parametrize(
    ("driver", "says"),
    [
        (
            Driver((12, 4), ADA.gpus),
            "error: NVIDIA's driver serves CUDA 12.4, TensorRT for RTX 1.7.1.116 needs CUDA 13.0: "
            "update the driver, or install tensorrt-rtx-cu12",
        ),
        (
            Driver((13, 0), ()),
            "error: there is no GPU 0, this machine has none: pass --device with one of them, or "
            "see CUDA_VISIBLE_DEVICES and nvidia-smi",
        ),
    ],
    ids=["too old", "no GPU"],
)
def test_a_driver_that_does_not_do(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, driver: Driver, says: str
) -> None:
    monkeypatch.setattr(nvidia_driver, "find_driver", lambda: driver)
    refused(says)


PLAN = "engines/rtx-fp16/vae_encoder.plan"


def test_a_plan_that_is_cut(
    built: Path, refused: Refused, machine: FakeTensorRt, reseal: Reseal
) -> None:
    size = (built / PLAN).stat().st_size
    (built / PLAN).write_bytes((built / PLAN).read_bytes()[:-100])
    refused(
        f"error: bundle '{{bundle}}': '{PLAN}' is {size - 100} bytes, expected {size}: copy it "
        "again, or export again",
    )
    # With a manifest that says so, it is the library that finds out.
    machine.fails = {"deserialize_cuda_engine"}
    machine.says = "Serialization assertion plan->header.size == blobSize failed."
    reseal(built)
    refused(
        "error: engine 'rtx-fp16' of graph 'text_encoder' is not a whole plan for TensorRT for RTX "
        "1.7.1.116 (Serialization assertion plan->header.size == blobSize failed.): copy the "
        f"bundle again, or {REBUILD}",
    )


@pytest.mark.parametrize(
    ("says", "found"),
    [
        (
            "The plan has been created with TensorRT-RTX version 1.6.0 and cannot be run here, the "
            "runtime is TensorRT-RTX version 1.7.1",
            "was built by another version than TensorRT for RTX 1.7.1.116",
        ),
        (
            "The plan supports compute capability 8.6, the current device has 8.9",
            "was not built for this GPU",
        ),
    ],
    ids=["version", "GPU"],
)
def test_a_manifest_that_says_that_a_plan_fits(
    refused: Refused, machine: FakeTensorRt, says: str, found: str
) -> None:
    machine.fails, machine.says = {"deserialize_cuda_engine"}, says
    refused(f"error: engine 'rtx-fp16' of graph 'text_encoder' {found} ({says}): {REBUILD}")


def test_a_manifest_of_other_tensors_than_the_plans(
    built: Path, refused: Refused, reseal: Reseal
) -> None:
    def change(data: Any) -> None:
        data["graphs"]["text_encoder"]["inputs"]["input_ids"]["name"] = "tokens"

    reseal(built, change)
    refused(
        "error: engine 'rtx-fp16' of graph 'text_encoder' has inputs input_ids, expected tokens by "
        f"the manifest: {REBUILD}"
    )


def test_a_picture_outside_of_the_profile(built: Path, ask: Run, reseal: Reseal) -> None:
    def change(data: Any) -> None:
        shapes = data["engines"][0]["graphs"]["vae_encoder"]["shapes"]["image"]
        shapes["opt"] = shapes["max"] = [1, 3, 64, 64]

    reseal(built, change)
    assert re.fullmatch(
        r"error: (.*: )?'image' is of shape \[1, 3, \d+, \d+\], engine 'rtx-fp16' of graph "
        r"'vae_encoder' takes \[1, 3, 8, 8\] to \[1, 3, 64, 64\]: "
        + re.escape(REBUILD.replace("{bundle}", str(built)))
        + " --shapes with larger ones, or use --provider onnxruntime-cuda\n",
        ask("--provider", "tensorrt-rtx", code=1).stderr,
    )


def test_this_machine_without_a_driver(built: Path, picture: Path, workplace: Path) -> None:
    """The real library, the real search for a driver: one line."""
    pytest.importorskip("tensorrt_rtx")
    from rism.runtime.engines.nvidia_driver import find_driver
    from rism.runtime.errors import ProviderError

    find_driver.cache_clear()
    try:
        find_driver()
    except ProviderError as error:
        expected = str(error)
    else:
        pytest.skip("needs a machine without a driver")
    arguments = ("run", picture, "green", "--bundle", built, "--provider")
    assert invoke(*arguments, "tensorrt-rtx", code=1).stderr == f"error: {expected}\n"
    auto = invoke(*arguments, "auto", "-v").stderr
    assert f"provider cpu: auto: tensorrt-rtx did not start ({expected}); " in auto
