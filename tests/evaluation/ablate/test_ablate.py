"""Which settings are compared, what they are made of, and what is kept of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rism.evaluation.ablate.choices import advice, choices
from rism.evaluation.ablate.claims import findings
from rism.evaluation.ablate.grid import ChoiceSetting, FeatureSetting, Grid, MapSetting
from rism.evaluation.ablate.sample_log import Records
from rism.evaluation.ablate.scoring import Outcome, run
from rism.evaluation.ablate.setting_masks import Pass, masks
from rism.evaluation.ablate.tables import tables
from rism.evaluation.datasets.sample import Image, Mask, Problem, Sample
from rism.evaluation.metrics.iou import Overlap, overlap, summarise
from rism.runtime.errors import InputError
from rism.runtime.image.geometry import Plan
from rism.runtime.method.equations import segment_tokens

DOUBLE, SINGLE, ROWS, COLUMNS, CHANNELS = 2, 3, 6, 8, 5
TOKENS = ROWS * COLUMNS
# The picture has a pixel for each token, so upsampling changes nothing.
PLAN = Plan((COLUMNS, ROWS), (COLUMNS, ROWS), (0, 0, COLUMNS, ROWS), (ROWS, COLUMNS))
# By hand, not by the code's slices.
SUBSETS = {"all": [0, 1, 2, 3, 4], "shallow": [0, 1], "deep": [2, 3, 4], "3": [3], "0": [0]}


def drawn(timestep: int, seed: int = 0) -> Pass:
    """A pass with numbers drawn from a seed."""
    rng = np.random.default_rng([seed, timestep])
    attention, propagated = rng.random((2, DOUBLE + SINGLE, TOKENS), dtype=np.float32)
    features = {
        (site, block): rng.standard_normal((TOKENS, CHANNELS), dtype=np.float32)
        for site in ("mmsa", "adaln", "block")
        for block in range(DOUBLE + SINGLE)
    }
    return Pass(timestep, attention, propagated, features, np.zeros((TOKENS, 1), np.float32))


def small_grid(**changes: Any) -> Grid:
    chosen = {"double": DOUBLE, "single": SINGLE, "feature_block": 3, "tau": 0.8, "steps": 3}
    return Grid.choose(**(chosen | changes))


def stretched(values: np.ndarray) -> np.ndarray:
    return ((values - values.min()) / (values.max() - values.min())).reshape(ROWS, COLUMNS)


def test_maps_are_sums_over_exactly_their_blocks() -> None:
    passes = [drawn(step) for step in (0, 1, 2)]
    found = dict(masks(small_grid(), iter(passes), PLAN))
    for timestep, blocks in product((0, 2), SUBSETS):
        for name, values in (
            ("CAM", passes[timestep].attention_vectors),
            ("RAM", passes[timestep].propagated_vectors),
        ):
            wanted = stretched(values[SUBSETS[blocks]].sum(0)) > 0.5
            assert 0 < wanted.sum() < TOKENS
            assert (found[MapSetting(timestep, blocks, name)] == wanted).all()


@pytest.mark.parametrize(
    ("timestep", "block", "site", "tau"),
    [(0, 3, "mmsa", 0.8), (0, 3, "mmsa", 0.3), (0, 1, "adaln", 0.8), (2, 4, "block", 0.8)],
)
def test_features_are_classified_in_the_region_of_step_0(
    timestep: int, block: int, site: str, tau: float
) -> None:
    passes = [drawn(step) for step in (0, 1, 2)]
    region = stretched(passes[0].propagated_vectors.sum(0)).ravel() > tau
    features = passes[timestep].features[site, block]
    normal = features / np.linalg.norm(features, axis=1, keepdims=True)
    wanted = normal @ (normal[region].mean(0) - normal[~region].mean(0)) > 0
    found = dict(masks(small_grid(), iter(passes), PLAN))
    mask = found[FeatureSetting(timestep, block, site, tau)]
    assert 0 < wanted.sum() < TOKENS
    assert (mask == wanted.reshape(ROWS, COLUMNS)).all()


def test_a_choice_reads_the_region_of_its_blocks_and_its_pass() -> None:
    thinned = replace(drawn(0, seed=1), noisy_grid=2)
    grid = small_grid(timesteps=[0], noisy_grids=[2])
    found = dict(masks(grid, iter([drawn(0), thinned]), PLAN))
    for setting, read, rows in (
        (ChoiceSetting("every:2", 1), drawn(0), [0, 2, 4]),
        (ChoiceSetting("to-features,every:2", 1), drawn(0), [0, 2]),
        (ChoiceSetting("0-1", 1), drawn(0), [0, 1]),
        (ChoiceSetting("to-features", 2), thinned, [0, 1, 2, 3]),
    ):
        wanted = segment_tokens(
            read.attention_vectors[rows],
            read.propagated_vectors[rows],
            read.features["mmsa", 3],
            tau=0.8,
        ).scores.reshape(ROWS, COLUMNS)
        assert 0 < (wanted > 0).sum() < TOKENS
        assert (found[setting] == (wanted > 0)).all()
    assert (found[ChoiceSetting("all", 1)] == found[grid.default()]).all()
    assert list(found) == grid.settings


def test_the_order_of_masks_is_that_of_the_settings() -> None:
    grid = small_grid(timesteps=[2], blocks=[1], sites=["adaln"])
    assert grid.timesteps == (0, 2)
    assert grid.blocks == (1, 3)
    assert grid.sites == ("adaln", "mmsa")
    found = [setting for setting, _ in masks(grid, iter([drawn(0), drawn(2)]), PLAN)]
    assert found == grid.settings
    names = [str(setting) for setting in grid.settings]
    assert len(set(names)) == len(names)
    assert names[0] == "CAM > 0.5 t 0 blocks all"


def test_a_map_that_says_nothing_gives_empty_masks() -> None:
    one = drawn(0)
    one.attention_vectors[:], one.propagated_vectors[:] = 0.5, np.nan
    found = dict(masks(small_grid(timesteps=[0]), iter([one]), PLAN))
    assert not any(mask.any() for mask in found.values())


def test_steps_of_long_runs_are_every_fifth() -> None:
    assert small_grid(steps=28).timesteps == (0, 5, 10, 15, 20, 25)
    assert small_grid(steps=4).timesteps == (0, 1, 2, 3)
    assert "shallow" not in small_grid(double=0).subsets


def test_settings_that_the_model_does_not_have() -> None:
    with pytest.raises(InputError, match="timestep 3 is not of this model, expected 0 to 2"):
        small_grid(timesteps=[3])
    with pytest.raises(InputError, match="block 5 is not of this model, expected 0 to 4"):
        small_grid(blocks=[5])
    with pytest.raises(InputError, match=r"site mlp is not of .*, expected block, adaln, mmsa"):
        small_grid(sites=["mlp"])


class Pictures:
    """Four samples of two pictures; the third cannot be read."""

    name, notes = "pictures", ()
    problems = (Problem("gone.png", "was never there"),)
    samples = tuple(Sample(str(i), str(i // 2), f"thing {i}", "form") for i in range(4))

    def image(self, sample: Sample) -> Image:
        if sample.key == "2":
            raise InputError("picture 2 is missing")
        return np.zeros((ROWS, COLUMNS, 3), np.uint8)

    def mask(self, sample: Sample) -> Mask:
        return np.random.default_rng(int(sample.key)).random((ROWS, COLUMNS)) > 0.5


class Model:
    """Draws passes by the expression, and counts."""

    def __init__(self, stop_after: int = 100) -> None:
        self.calls, self.stop_after = 0, stop_after

    def __call__(self, name: str, image_hwc: Image, expression: str) -> tuple[Plan, Iterator[Pass]]:
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        seed = int(expression.split()[1])
        return PLAN, (drawn(step, seed) for step in (0, 1, 2))


def ran(file: Path, model: Model, **about: Any) -> Outcome:
    return run(Pictures(), small_grid(), model, file=file, about={"model": "drawn", **about})


def test_numbers_are_those_of_the_masks(tmp_path: Path) -> None:
    outcome = ran(tmp_path / "records.jsonl", Model())
    found: dict[Any, list[Overlap]] = {}
    for seed in (0, 1, 3):
        true_hw = Pictures().mask(Pictures.samples[seed])
        passes = (drawn(step, seed) for step in (0, 1, 2))
        for setting, mask in masks(small_grid(), passes, PLAN):
            found.setdefault(setting, []).append(overlap(mask, true_hw))
    assert outcome.summaries == {key: summarise(value) for key, value in found.items()}
    default = small_grid().default()
    assert outcome.of(default).tolist() == [each.iou for each in found[default]]
    assert [p.where for p in outcome.problems] == ["gone.png", "2"]
    assert outcome.problems[1].what == "picture 2 is missing"


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    wanted = ran(whole, Model())
    with pytest.raises(KeyboardInterrupt):
        ran(cut, Model(stop_after=1))
    with cut.open("ab") as file:
        file.write(b'{"key":"1","overl')  # the machine went down in the middle of a line
    model = Model()
    outcome = ran(cut, model)
    assert model.calls == 2
    assert cut.read_bytes() == whole.read_bytes()
    assert outcome.summaries == wanted.summaries
    again = Model()
    assert ran(cut, again).summaries == wanted.summaries and not again.calls


def test_records_of_another_run_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    ran(file, Model(), steps=4)
    with pytest.raises(InputError, match=r"of a run with another steps: choose another folder"):
        ran(file, Model(), steps=5)
    with pytest.raises(InputError, match="of a run with another settings"):
        run(Pictures(), small_grid(blocks=[1]), Model(), file=file,
            about={"model": "drawn", "steps": 4})  # fmt: skip


def test_records_are_lines_and_damaged_ones_are_named(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    ran(file, Model())
    written = file.read_bytes()
    header, *lines = map(json.loads, written.splitlines())
    assert header["settings"] == [str(setting) for setting in small_grid().settings]
    assert [line["key"] for line in lines] == ["0", "1", "3"]
    assert all(len(line["overlaps"]) == 4 * len(header["settings"]) for line in lines)
    damages = [
        b"[]",
        b'{"key": "7", "overlaps": [1, 2, 3]}',
        b'{"key": "7", "overlaps": "x"}',
        b"\xff\xfe",
        b"[" * 100_000,
    ]
    for damage in damages:
        file.write_bytes(written + damage + b"\n")
        with pytest.raises(InputError, match=r"records\.jsonl.*(line 5|not the file of a run)"):
            ran(file, Model())
    file.write_bytes(b"something else\n")
    with pytest.raises(InputError, match="is not the file of a run"):
        Records(file, {}, [])
    assert file.read_bytes() == b"something else\n"


def made_up(values: dict[Any, float], samples: int = 50) -> Outcome:
    """An outcome with these mIoUs, and other settings at a half."""
    grid = small_grid()
    noise = np.random.default_rng(0).normal(0, 0.01, (samples, len(grid.settings)))
    ious = noise - noise.mean(0) + [values.get(setting, 0.5) for setting in grid.settings]
    summaries = {
        setting: {"n": samples, "mIoU": float(ious[:, at].mean())}
        for at, setting in enumerate(grid.settings)
    }
    return Outcome(grid, summaries, ious, ())


def test_findings_hold_or_do_not() -> None:
    default = small_grid().default()
    ram = MapSetting(0, "all", "RAM")
    outcome = made_up(
        {
            ram: 0.6,
            replace(ram, blocks="deep"): 0.61,
            replace(ram, blocks="shallow"): 0.2,
            replace(ram, timestep=2): 0.7,
            default: 0.8,
            replace(default, tau=0.4): 0.9,
        }
    )
    verdicts = {each.claim: each.verdict for each in findings(outcome)}
    assert verdicts == {
        "RAM is better than CAM": "yes",
        "the whole method is better than RAM": "yes",
        "deep blocks alone are about as good as all (RAM)": "yes",
        "shallow blocks alone are worse than deep ones (RAM)": "yes",
        "step 0 is the best for RAM": "no",
        "step 0 is the best for features": "yes",
        "MMSA features are better than AdaLN features": "yes",
        "AdaLN features are better than block features": "undecided",
        "block 3, at about two thirds of the depth, has the best features": "yes",
        "tau 0.8 is better than every lower one": "no",
        "tau 0.8 is better than every higher one": "yes",
    }
    best = next(each for each in findings(outcome) if each.claim.endswith("lower one"))
    assert best.compared[1] == replace(default, tau=0.4)
    assert best.difference == pytest.approx(-0.1)
    assert findings(made_up({}, samples=1)) == []


def test_the_cheapest_choice_that_loses_nothing_is_recommended() -> None:
    outcome = made_up(
        {ChoiceSetting(name, 1): 0.3 for name in ("0-0", "0-1", "every:4", "every:3")}
    )
    found = {str(each.setting.blocks): each for each in choices(outcome)}
    assert found["0-0"].difference == pytest.approx(-0.2)
    # Blocks after the last that is read do not run, whether attention or features are read.
    assert [found[name].blocks for name in ("all", "deep", "0-0", "to-features")] == [5, 5, 4, 4]
    said = advice(list(found.values()))
    assert "`--capture-blocks to-features --noisy-grid 1`" in said and "80% of the products" in said


def test_tables_have_every_setting_once(tmp_path: Path) -> None:
    outcome = ran(tmp_path / "records.jsonl", Model())
    found = {table.name: table for table in tables(outcome)}
    assert list(found) == ["table2", "table3", "figure3", "figure4", "figure5", "choices"]
    listed = {setting for table in found.values() for _, setting in table.rows}
    assert listed == set(outcome.summaries)
    lines = found["table2"].to_csv(outcome.summaries).splitlines()
    assert lines[0].startswith("mask,n,mIoU,oIoU,P@0.5") and len(lines) == 4
    summary = outcome.summaries[outcome.grid.default()]
    assert lines[3].startswith(f"FSL,3,{summary['mIoU']:.6f},{summary['oIoU']:.6f},")
    assert "| 53.94 / 57.56 |" in found["table3"].to_markdown(outcome.summaries)
