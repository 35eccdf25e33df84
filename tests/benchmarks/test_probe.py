"""The benchmark of one block's probe on a CPU, and the arithmetic that its floors are made of."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import probe
from benchmarks.rooflines.probe import GPUS, SHAPES, WAYS, Cost, Gpu, cost, floor_s, table
from rism.export.attention_capture import Capture, Spans
from rism.export.probe import probe_vectors, torch_form

WAYS_BEFORE = ("main attention", "the same with statistics")


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


def test_a_whole_pass_by_hand() -> None:
    """FLUX.2-klein-9B; Step1X-Edit's is counted in test_capture.py."""
    d, n, image = 4096, 512 + 2 * 4096, 4096
    block = n * (4 + 9) * d * d + 2 * n * n * d
    begin = 2 * image * 128 * d + 512 * 12288 * d
    assert SHAPES["9b@1024"].flop == 2 * (begin + 31 * block + (image + n) * d * d)


def test_words_without_weight_cost_nothing() -> None:
    shape = SHAPES["9b@1024"]
    few, everything = (cost(shape, "fused", weighted=each) for each in (16, 512))
    rows = (shape.blocks - 1) * shape.heads * shape.clean
    assert everything.exponentials - few.exponentials == rows * (512 - 16)
    assert few.flop < everything.flop < cost(shape, "fused blind").flop


def test_the_busiest_unit_decides() -> None:
    gpu = Gpu(tensor=100.0, memory=10.0, processors=1, clock=1.0)
    assert floor_s(Cost(flop=1000.0, exponentials=16.0, bytes=10.0), gpu) == 10.0
    assert floor_s(Cost(flop=100.0, exponentials=320.0, bytes=10.0), gpu) == 20.0
    assert floor_s(Cost(flop=100.0, exponentials=16.0, bytes=300.0), gpu) == 30.0
    assert all(name in table() for name in (*GPUS, *SHAPES))


def test_every_way_is_timed_and_right(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "probe.json"
    arguments = ["--device", "cpu", "--cases", "small", "--runs", "2", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["probe", *arguments])
    probe.main()
    rows = json.loads(file.read_text())["small"]
    assert [row["way"] for row in rows] == [*WAYS_BEFORE, *WAYS, "fused, 16 weights"]
    for row in rows:
        assert row["times_main_attention"] == row["median_s"] / rows[0]["median_s"]
    for row in rows[2:]:
        assert max(row["error_a"], row["error_ta"]) < 1e-5, row
    assert capsys.readouterr().out.count("\n") == 1 + len(rows)


def test_figures_are_written_as_they_come(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One way fails, the run is cut short in another: what was known is in the file."""
    file = tmp_path / "probe.json"

    def broken(self: probe.Block, *_: object) -> None:
        raise RuntimeError("no kernel\nfor this")

    def cut(self: probe.Block, *_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(probe.Block, "shares", broken)
    monkeypatch.setattr(probe.Block, "fused", cut)
    arguments = ["--device", "cpu", "--cases", "small", "--runs", "2", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["probe", *arguments])
    with pytest.raises(KeyboardInterrupt):
        probe.main()
    found = json.loads(file.read_text())
    assert [row["way"] for row in found["small"][:3]] == [*WAYS_BEFORE, "vectors"]
    assert found["small"][3] == {"way": "shares", "not_run": "RuntimeError: no kernel for this"}
    assert len(found["small"]) == 4 and found["environment"]["packages"]["torch"]
    assert "shares" in capsys.readouterr().out.splitlines()[-1]


def test_wrong_requests_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, message in (
        ([], "error: device cuda is not here: .* --floors$"),
        (["--cases", "5b@512"], "error: case '5b@512' is not known, expected some of step1x"),
    ):
        monkeypatch.setattr(sys, "argv", ["probe", *arguments])
        with pytest.raises(SystemExit, match=message):
            probe.main()


def test_the_page_has_these_floors() -> None:
    """docs/probe.md, row by row; H100 and H200 share a column, as bytes decide nothing."""
    page = (Path(__file__).parents[2] / "docs/probe.md").read_text()
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
