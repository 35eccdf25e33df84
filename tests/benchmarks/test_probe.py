"""The scenario of one block's probe on a CPU, and the lower bounds of it and of all stages."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.__main__ import QUICK
from benchmarks.capture.block import ProbeBlock
from benchmarks.config import read_config
from benchmarks.rooflines.gpus import GPUS, GpuRates
from benchmarks.rooflines.probe_bounds import SHAPES, WAYS, Cost, cost, floor_s, table
from benchmarks.rooflines.stages import STEP1X, StageCase, StageCost, stages
from benchmarks.run import run_here
from rism.export.attention_capture import Capture, Spans
from rism.export.probe import probe_vectors, torch_form
from tests.paths import ROOT


def counted(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", SHAPES)
def test_floors_count_what_is_computed(case: str, way: str) -> None:
    """By the shapes of every product, on the device that has nothing but shapes."""
    shape = SHAPES[case]
    k = torch.empty(1, shape.heads, shape.keys, shape.dim, dtype=torch.float16, device="meta")
    q, weights = k[:, :, -shape.clean :], k.new_empty(1, shape.prompt, dtype=torch.float32)
    rows = q.new_empty(q.shape[:3], dtype=torch.float32)

    def exported() -> None:
        spans = Spans(prompt=shape.prompt, noisy=shape.clean, clean=shape.clean)
        Capture(spans, weights, 0).probe(0, q, k)

    if way == "vectors":
        wanted = shape.blocks * counted(exported)
    else:
        run = torch_form.probe_vectors if way == "shares" else probe_vectors
        blind = counted(lambda: run(q, k, weights))
        known = blind if way == "fused blind" else counted(lambda: run(q, k, weights, rows))
        wanted = (shape.blocks - 1) * known + blind  # the last block has no main attention
    assert cost(shape, way).flop == wanted


def test_the_busiest_unit_decides() -> None:
    gpu = GpuRates("", bf16=100.0, fp8=None, bandwidth=10.0, processors=1, clock=1.0, source="")
    assert floor_s(Cost(flop=1000.0, exponentials=16.0, bytes=10.0), gpu) == 10.0
    assert floor_s(Cost(flop=100.0, exponentials=320.0, bytes=10.0), gpu) == 20.0
    assert floor_s(Cost(flop=100.0, exponentials=16.0, bytes=300.0), gpu) == 30.0
    assert all(name in table() for name in (*GPUS, *SHAPES))


def test_a_way_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: ProbeBlock) -> None:
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(ProbeBlock, "shares", broken)
    [scenario] = [each for each in read_config(QUICK) if each.name == "probe"]
    rows = {row["row"]: row for row in run_here(replace(scenario, runs=1, warm_up=0))["rows"]}
    assert set(rows) == {"main attention", "the same with statistics", *WAYS, "fused, 16 weights"}
    assert rows.pop("shares")["reason"] == "RuntimeError: no kernel for this"
    probed = [row["notes"] for row in rows.values() if row["notes"]]
    assert len(probed) == 4 and all(notes["repeats"] for notes in probed)
    assert all(max(notes["error_a"], notes["error_ta"]) < 1e-5 for notes in probed)


def test_the_page_has_these_floors() -> None:
    """docs/probe.md, row by row; H100 and H200 share a column, as bytes decide nothing."""
    page = (ROOT / "docs/probe.md").read_text()
    for shape in SHAPES.values():
        ways = [("exported", cost(shape, "vectors")), ("fused blind", cost(shape, "fused blind"))]
        ways += [("shares", cost(shape, "shares"))]
        ways += [("fused, all prompt tokens", cost(shape, "fused"))]
        ways += [("fused, 16 of them", cost(shape, "fused", weighted=16))]
        for way, each in ways:
            assert floor_s(each, GPUS["H100"]) == floor_s(each, GPUS["H200"])
            floors = [
                f"{floor_s(each, gpu) * 1e3:.2f}" for name, gpu in GPUS.items() if name != "H100"
            ]
            share = f"{each.flop / shape.flop:.1%}".replace("%", " %")
            assert f"| {' | '.join([way, f'{each.flop / 1e12:.3f}', share, *floors])} |" in page


def test_a_floor_is_of_operations_or_of_bytes() -> None:
    gpu = GPUS["H200"]
    assert StageCost("", 989.4e12, 1.0).seconds(gpu) == pytest.approx(1)
    assert StageCost("", 1.0, 4.8e12).seconds(gpu) == pytest.approx(1)
    assert StageCost("", 1.0, 4.8e12).seconds(gpu, "fp8") == pytest.approx(0.5)
    mixed = StageCost("", 1978.9e12, 1.0, attention=989.4e12)
    assert mixed.seconds(gpu, "fp8") == pytest.approx(2)
    assert mixed.seconds(GPUS["A100"], "fp8") is None


def test_a_fused_probe_is_within_the_targets_of_capture() -> None:
    """8 % over no capture at 512, 12 % at 1024: what the arithmetic leaves room for."""
    for side, most in ((512, 0.08), (1024, 0.12)):
        found = {stage.name: stage for stage in stages(StageCase(STEP1X, side))}
        plain = found["DiT without capture"].operations
        assert found["DiT, capture by the fused probe"].operations < (1 + most / 2) * plain
