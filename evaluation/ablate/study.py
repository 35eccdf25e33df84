"""Runs the ablations of a checkpoint on a dataset, into a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rism.evaluation.ablate.grid import Grid
from rism.evaluation.ablate.model import AblationModel, ModelOptions
from rism.evaluation.ablate.report import write_report
from rism.evaluation.ablate.scoring import Outcome, Source, run
from rism.evaluation.ablate.setting_masks import Pass
from rism.evaluation.datasets.sample import Dataset, Progress
from rism.runtime.errors import InputError
from rism.runtime.image.geometry import Plan
from rism.runtime.image_encoder import ImageState
from rism.runtime.prompt.refiner import Refiner

RECORDS = "records.jsonl"


@dataclass(frozen=True)
class Study:
    """The settings and the model of a run.

    For time steps, blocks and sites see `Grid.choose`; None for tau is the model's own. The refiner
    rewords instructions, as for the paper's figures, and `wording` names it.
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    timesteps: Sequence[int] | None = None
    blocks: Sequence[int] | None = None
    sites: Sequence[str] | None = None
    noisy_grids: Sequence[int] = (1, 2)
    tau: float | None = None
    refiner: Refiner | None = None
    wording: str = ""


def ablate(
    dataset: Dataset,
    study: Study,
    folder: Path,
    *,
    command: str = "",
    progress: Progress | None = None,
) -> Outcome:
    """Score the samples that the folder has no records of yet, and write its report.

    `command` is the command line, for the page; `progress` is called after each sample.

    Raises:
        InputError: a setting that the model does not have, records of another run, or no sample
            that could be scored.
        CheckpointError, UnsupportedModelError, ProviderError: the model cannot be run.
        OutputError: the folder cannot be written to.
    """
    model = AblationModel(study.model)
    grid = open_grid(model, study)
    outcome = run(
        dataset,
        grid,
        source_of(model, grid, study.refiner),
        file=folder / RECORDS,
        about=_about(model, study, grid),
        progress=progress,
    )
    if not outcome.count:
        why = f", the first of them: {outcome.problems[0].what}" if outcome.problems else ""
        raise InputError(f"no sample of {dataset.name} could be scored{why}")
    write_report(
        outcome,
        folder,
        title=f"Ablations of {model.spec.name} on {dataset.name}",
        about=_sentences(model, dataset, outcome, study.wording, command),
    )
    return outcome


def open_grid(model: AblationModel, study: Study) -> Grid:
    """Return a study's settings for a model.

    Raises:
        InputError: see `Grid.choose`; or tau is out of range.
    """
    spec = model.spec
    tau = spec.tau if study.tau is None else study.tau
    if not 0.0 <= tau < 1.0:
        raise InputError(f"tau is {tau}, expected a number from 0 to below 1, such as 0.8")
    return Grid.choose(
        double=spec.double_blocks,
        single=spec.single_blocks,
        feature_block=spec.feature_block,
        tau=tau,
        steps=model.steps,
        timesteps=study.timesteps,
        blocks=study.blocks,
        sites=study.sites,
        noisy_grids=study.noisy_grids,
    )


def source_of(model: AblationModel, grid: Grid, refiner: Refiner | None = None) -> Source:
    """Return a function that runs a model; the last image's encoding is reused."""
    states: dict[str, ImageState] = {}

    def passes(
        name: str, image_hwc: npt.NDArray[np.uint8], expression: str
    ) -> tuple[Plan, Iterator[Pass]]:
        if name not in states:
            states.clear()
            states[name] = model.state(image_hwc)
        state = states[name]
        prompt = model.prompt(state, expression, refiner=refiner, image_hwc=image_hwc)
        return state.plan, model.passes(
            state,
            prompt,
            timesteps=grid.timesteps,
            blocks=grid.blocks,
            sites=grid.sites,
            noisy_grids=grid.noisy_grids,
        )

    return passes


def _about(model: AblationModel, study: Study, grid: Grid) -> dict[str, Any]:
    """Return everything that the numbers depend on, besides the dataset and the settings."""
    options, checkpoint = study.model, model.checkpoint
    return {
        "model": model.spec.name,
        "source": checkpoint.source,
        "revision": checkpoint.revision,
        "precision": model.precision.name,
        "size_level": options.size_level,
        "template": model.spec.prompt.template,
        "wording": study.wording,
        "steps": model.steps,
        "feature_block": grid.feature_block,
        "tau": grid.tau,
    }


def _sentences(
    model: AblationModel, dataset: Dataset, outcome: Outcome, wording: str, command: str
) -> list[str]:
    grid, spec = outcome.grid, model.spec
    notes = f" ({'; '.join(dataset.notes)})" if dataset.notes else ""
    words = f" in other words ({wording})" if wording else ""
    found = [
        f"{outcome.count} samples of {dataset.name}{notes}; {spec.name}, {spec.double_blocks} "
        f"double-stream and {spec.single_blocks} single-stream blocks, {model.precision.name}, "
        f"instruction `{spec.prompt.template}`{words}. The method is the published one, as with "
        "`--paper`, and so are the metrics: one sample per sentence, at the size of the image.",
        f"Step 0 is pure noise, the bundle's own; of {model.steps} steps "
        f"{', '.join(map(str, grid.timesteps))} are captured. Only the conditional branch is "
        "denoised, without guidance, by Euler's method. One forward pass for each sample and step "
        "gives everything here. Maps are thresholded at 0.5; FSL has the region of step 0 and all "
        f"blocks with tau {grid.tau:g}, and by default the {grid.feature_site} features of block "
        f"{grid.feature_block} at step 0.",
    ]
    if spec.demonstrator:
        found.append(
            "This model is a demonstrator of a few million parameters, trained on drawn scenes: "
            "its numbers say nothing about published models."
        )
    if command:
        found.append(f"Made by `{command}`.")
    return found
