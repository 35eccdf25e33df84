"""Step1X-Edit's single step against its reference: connector, every block, capture."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rism.export.families.step1x.model import Step1XModel
from rism.export.graph.capture_graph import CaptureGraph, CaptureOptions
from rism.export.names import FEATURE_SITES
from rism.export.parity.inputs import transformer_feeds
from rism.export.precision import PRECISIONS
from tests.export.families.step1x.parity import block_differences, random_inputs
from tests.export.families.step1x.small_model import VERSIONS, open_step1x

FP32 = PRECISIONS["fp32"]
GRID = (4, 5)


@pytest.fixture(scope="module", params=VERSIONS)
def model(request: pytest.FixtureRequest, shared: dict[str, Path]) -> Step1XModel:
    return open_step1x(shared[request.param])


def test_connector_and_every_block(model: Step1XModel) -> None:
    differences = block_differences(model, random_inputs(model, GRID))
    assert len(differences) == 2 + model.spec.blocks - 1  # of the last block no more is asked
    print(f"Step1X-Edit {model.version.name}, largest differences: {differences}")
    assert max(differences.values()) < 1e-5, differences


@pytest.mark.parametrize("block", [1, 3])
def test_what_is_captured(model: Step1XModel, block: int) -> None:
    given = random_inputs(model, GRID)
    [wanted] = model.reference(FP32).dit([given], block)
    dit, spec = model.transformer(FP32).fill(), replace(model.spec, feature_block=block)
    feeds = {k: torch.from_numpy(v) for k, v in transformer_feeds(given).items()}
    vectors = wanted.attention_vectors
    propagated = (wanted.transition_matrices @ vectors.unsqueeze(-1))[..., 0]
    for site in FEATURE_SITES:
        options = CaptureOptions("vectors", feature_site=site, token_attention=True)
        with torch.no_grad():
            found = CaptureGraph(dit, spec, options, FP32)(**feeds)
        torch.testing.assert_close(found[2], wanted.features[site], atol=1e-5, rtol=1e-5)
        expected = (vectors, propagated, wanted.token_attention.sum(1))
        torch.testing.assert_close((*found[:2], found[3]), expected, atol=1e-5, rtol=0)


@pytest.fixture
def outputs(model: Step1XModel) -> Callable[..., torch.Tensor]:
    """Runs the single step on changed inputs and returns the attention it captures."""
    dit = model.transformer(FP32).fill()

    def run(**changes: Any) -> torch.Tensor:
        given = random_inputs(model, GRID, batch=1)
        feeds = {k: torch.from_numpy(v) for k, v in transformer_feeds(given).items()}
        graph = CaptureGraph(dit, model.spec, CaptureOptions("vectors"), FP32)
        with torch.no_grad():
            vectors: torch.Tensor = graph(**(feeds | changes))[0]
        return vectors

    return run


def test_every_input_of_the_prompt_matters(model: Step1XModel, outputs: Any) -> None:
    given = random_inputs(model, GRID, batch=1)
    assert given.prompt.mask is not None
    shorter = given.prompt.mask.clone()
    shorter[:, 5:] = 0
    assert (outputs(prompt_mask=shorter) - outputs()).abs().max() > 1e-4
    louder = given.prompt.embeds.clone()
    louder[:, 2] += 3
    assert (outputs(prompt_embeds=louder) - outputs()).abs().max() > 1e-4
    if given.prompt.positions is not None:
        moved = given.prompt.positions.clone()
        moved[3] += 5
        assert (outputs(prompt_positions=moved) - outputs()).abs().max() > 1e-5


def test_the_versions_stand_their_clean_tokens_elsewhere(model: Step1XModel) -> None:
    axes = model.spec.family.clean_axes
    assert model.spec.family.noisy_axes == (0.0, "row", "column")
    assert {
        "1.0": (0.0, "row", "column"),
        "1.1": (1.0, ("row", 1.0), ("column", 1.0)),
        "1.2": (1.0, "row", "column"),
    }[model.version.name] == axes
