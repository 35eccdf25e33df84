"""The benchmark of capture, on a model small enough for a CPU: its figures and its refusals."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.capture import __main__, onnx, pytorch
from benchmarks.capture.models import Case, RandomModel, count_flop
from benchmarks.capture.report import Report
from benchmarks.capture.variants import BASELINE, VARIANTS
from benchmarks.harness.measure import Timing
from benchmarks.rooflines.probe import SHAPES
from rism.export.precision import PRECISIONS
from rism.runtime.errors import InputError, ProviderError

ROOT = Path(__file__).parents[2]
ENGINES = ("torch", "compile", "onnxruntime")
MODELS = ("tiny", "tiny-step1x")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, models: str = "tiny@96") -> None:
    command = ["capture", "--device", "cpu", "--models", models, *arguments]
    monkeypatch.setattr(sys, "argv", command)
    __main__.main()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Products this small take longer to share out than to compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=MODELS)
def results(
    request: pytest.FixtureRequest, one_thread: None, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """One whole run; graphs are compiled by PyTorch's own stand-in, without a C++ compiler."""
    file = tmp_path_factory.mktemp("capture") / "capture.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
        arguments = ("--variants", "vectors,paper", "--runs", "2", "--json", str(file))
        run(patch, *arguments, models=f"{request.param}@96")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_every_figure_has_its_baseline_in_the_same_run(results: dict[str, Any]) -> None:
    assert results["baseline"] == BASELINE
    (case,) = results["cases"]
    assert case["tokens"] == {"prompt": 32, "noisy": 36, "clean": 36}
    baselines = {
        row["engine"]: row["median_s"] for row in case["results"] if row["variant"] == BASELINE
    }
    assert tuple(baselines) == ENGINES
    for row in case["results"]:
        assert "not_run" not in row, row
        assert row["runs"] == 2 and row["min_s"] <= row["median_s"] <= row["max_s"]
        assert row["times_no_capture"] == row["median_s"] / baselines[row["engine"]]
        assert row["memory_bytes"] is None  # of a CPU nothing is claimed
        assert row["flop_per_s"] == case["flop"][row["variant"]] / row["median_s"]
    measured = [(row["engine"], row["variant"]) for row in case["results"]]
    assert measured == [
        ("torch", "no capture"),
        ("torch", "paper"),
        ("torch", "vectors"),
        ("torch", "no capture again"),
        ("compile", "no capture"),
        ("compile", "vectors"),
        ("onnxruntime", "no capture"),
        ("onnxruntime", "vectors"),
    ]


def test_the_target_is_judged_for_every_engine(results: dict[str, Any]) -> None:
    assert [target["engine"] for target in results["targets"]] == list(ENGINES)
    for target in results["targets"]:
        assert target["met"] == (target["times_no_capture"] <= 1.15)


def test_less_is_asked_of_a_small_picture(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("cpu", "fp32", [BASELINE, "fused"], None)
    report.begin(Case.parse("step1x-1.0@512"))
    for name, seconds in ((BASELINE, 1.0), ("fused", 1.1)):
        report.add("torch", name, pytorch.Figure(Timing((seconds,)), None, {}))
    report.end()
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.endswith("torch fused 1.100 x no capture, at most 1.08: missed")


def test_the_exported_capture_is_the_papers(results: dict[str, Any]) -> None:
    rows = [row for row in results["cases"][0]["results"] if row["variant"] == "vectors"]
    assert len(rows) == 3
    for row in rows:
        differs = row["differs_from_paper"]
        assert set(differs) == {"attention_vectors", "propagated_vectors", "features"}
        assert max(differs.values()) < 1e-5, row


@pytest.mark.parametrize("size", MODELS)
@pytest.mark.parametrize("name", [name for name in VARIANTS if name != BASELINE])
def test_variants_agree_on_uneven_weights(name: str, size: str) -> None:
    model = RandomModel(Case(size, 64), PRECISIONS["fp32"], "cpu")
    model.feeds["prompt_weights"] = torch.rand(1, 32, generator=torch.Generator().manual_seed(1))
    figures = [pytorch.run_eager(model, VARIANTS[each], runs=1).outputs for each in ("paper", name)]
    for output, wanted in figures[0].items():
        torch.testing.assert_close(
            torch.from_numpy(figures[1][output]), torch.from_numpy(wanted), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize(
    ("size", "keys"), [("tiny", "last.to_k"), ("tiny-step1x", "last_attn.to_k")]
)
def test_the_baseline_runs_every_block(size: str, keys: str) -> None:
    """Features come from a middle block; a change of the last one must reach the output."""
    model = RandomModel(Case(size, 64), PRECISIONS["fp32"], "cpu")
    before = pytorch.run_eager(model, VARIANTS[BASELINE], runs=1).outputs
    with torch.no_grad():
        model.step.get_parameter(f"{keys}.weight").mul_(0.5).add_(0.1)
    after = pytorch.run_eager(model, VARIANTS[BASELINE], runs=1).outputs
    assert (before["features"] == after["features"]).all()
    assert (before["last"] != after["last"]).any()


@pytest.mark.parametrize("size", MODELS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_nothing_is_left_on_the_host(precision: str, size: str) -> None:
    """PyTorch's device without storage refuses to be mixed with the CPU, as a GPU does."""
    model = RandomModel(Case(size, 64), PRECISIONS[precision], "cpu")
    matrices = [value for value in model.step.parameters() if value.ndim > 1]
    assert {value.dtype for value in matrices} == {PRECISIONS[precision].compute}
    model.drop_weights()
    feeds = {name: value.to("meta") for name, value in model.feeds.items()}
    for variant in VARIANTS.values():
        with torch.no_grad():
            found = model.module(variant)(**feeds)
        assert {value.device.type for value in found} == {"meta"}


def test_padding_is_zeros_behind_a_mask() -> None:
    case = Case.parse("tiny-step1x@64")
    feeds = RandomModel(case, PRECISIONS["fp32"], "cpu").feeds
    assert feeds["prompt_mask"].tolist() == [[1.0] * 18 + [0.0] * 14]
    assert (feeds["prompt_embeds"][0, :18] != 0).all() and (
        feeds["prompt_embeds"][0, 18:] == 0
    ).all()
    assert feeds["prompt_weights"].sum() == 32  # the paper counts padding, too
    assert case.spec().prompt_mask and not Case("tiny", 64).spec().prompt_mask


def test_arithmetic_of_step1x_is_counted_whole() -> None:
    """The published size by hand: widths, tokens, then every product, each of 2 m n k."""
    d, c, h, pooled = 3072, 4096, 3584, 768
    prompt, image = 640, 32 * 32
    n = prompt + 2 * image
    connector = prompt * h * c + h * c + c * c + h * pooled
    connector += 2 * (prompt * 12 * c * c + 2 * c * c + 2 * prompt * prompt * c)
    begin = 2 * image * 64 * d + prompt * c * d + pooled * d + d * d
    double = 2 * 6 * d * d + n * 12 * d * d + 2 * n * n * d
    single = 3 * d * d + n * 12 * d * d + 2 * n * n * d
    last = 2 * d * d + (image + n) * d * d
    wanted = 2 * (connector + begin + 19 * double + 37 * single + last)
    case = Case.parse("step1x-1.0@512")
    found = {
        name: count_flop(case, VARIANTS[name], PRECISIONS["bf16"]) for name in (BASELINE, "vectors")
    }
    assert found[BASELINE] == wanted == SHAPES["step1x-1.0@512"].flop
    assert 39.7e12 < found[BASELINE] < found["vectors"] < 1.07 * wanted


def test_arithmetic_of_klein_is_counted_whole() -> None:
    d, n, image = 3072, 512 + 2 * 1024, 1024
    block = n * (4 + 9) * d * d + 2 * n * n * d  # the MLP: into two parts of 3 d, and back
    begin = 2 * image * 128 * d + 512 * 7680 * d
    wanted = 2 * (begin + 24 * block + (image + n) * d * d)
    assert count_flop(Case("4b", 512), VARIANTS[BASELINE], PRECISIONS["bf16"]) == wanted


def test_published_figures_stand_beside(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("cpu", "fp32", [BASELINE], None)
    cases = [Case.parse(text) for text in ("step1x-1.0@512", "step1x-1.0@1024")]
    for case in cases:
        report.begin(case)
        report.add("torch", BASELINE, pytorch.Figure(Timing((0.5,)), None, {}))
    report.count(cases[0], {BASELINE: 39_700_000_000_000})
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "step1x-1.0@512: published, A100: 603.78 ms, 25.31 GB"
    assert not any("@1024: published" in line for line in lines)
    assert lines[-2:] == [
        "step1x-1.0@512: 39.7 TFLOP with no capture",
        f"  {'torch no capture':<32}      79.4 TFLOP/s",
    ]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError(), "out of memory at 79.1 GiB of 79.2 GiB"),
        (RuntimeError("no plan\nsupports it"), "not run: no plan supports it"),
    ],
)
def test_a_failure_is_a_result(
    error: Exception,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    file = tmp_path / "capture.json"
    monkeypatch.setattr(__main__, "run_eager", fail)
    monkeypatch.setattr(__main__, "out_of_memory", lambda: "out of memory at 79.1 GiB of 79.2 GiB")
    run(monkeypatch, "--engines", "torch", "--variants", "paper", "--json", str(file))
    rows = json.loads(file.read_text())["cases"][0]["results"]
    assert rows[1] == {"engine": "torch", "variant": "paper", "not_run": reason}
    assert reason in capsys.readouterr().out


def test_nothing_is_counted_while_a_gpu_waits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run that ends before operations are counted has all its times."""
    file = tmp_path / "capture.json"

    def ended(*_: object) -> int:
        rows = json.loads(file.read_text())["cases"][0]["results"]
        assert [row["variant"] for row in rows] == ["no capture", "no capture again"]
        raise KeyboardInterrupt

    monkeypatch.setattr(__main__, "count_flop", ended)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, "--engines", "torch", "--variants", "no capture", "--json", str(file))


def test_an_engine_that_cannot_run_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(provider: str) -> None:
        raise ProviderError(f"provider {provider} is not in this onnxruntime")

    file = tmp_path / "capture.json"
    monkeypatch.setattr(onnx, "check_provider", refuse)
    run(monkeypatch, "--engines", "onnxruntime", "--variants", "vectors", "--json", str(file))
    for row in json.loads(file.read_text())["cases"][0]["results"]:
        assert row["not_run"] == "not run: provider cpu is not in this onnxruntime"


def test_a_device_that_is_not_there_is_one_line() -> None:
    command = [sys.executable, "-m", "benchmarks.capture.__main__", "--models", "9b@1024"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    assert found.stderr.startswith("error: device cuda is not here")
    assert found.stderr.count("\n") == 1 and "--device cpu" in found.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "5b@512",
            r"'5b@512' is not known, expected one of tiny, .*4b, 9b, tiny-step1x, step1x-1.0 ",
        ),
        ("4b", "such as 4b@512"),
        ("4b@500", "expected a multiple of 16"),
    ],
)
def test_models_that_are_not_known(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Case.parse(text)


def test_wrong_requests_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="error: engine 'tensorrt' is not known, expected some of"):
        run(monkeypatch, "--engines", "torch,tensorrt")
    with pytest.raises(SystemExit, match=r"error: cannot write .*figures.json: No such"):
        run(monkeypatch, "--json", str(tmp_path / "nowhere" / "figures.json"))
