"""Step1X-Edit's single step against the literal transcription: connector, every block, capture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rism.export.capture import Capture, Spans
from rism.export.families import step1x_reference as reference
from rism.export.families.step1x import Step1XModel
from rism.export.graphs import CaptureGraph, CaptureOptions
from rism.export.precision import PRECISIONS
from rism.export.samples import transformer_feeds
from rism.export.spec import LiteralInputs
from tests.export.step1x import VERSIONS, literal_inputs, make_step1x, open_step1x

FP32 = PRECISIONS["fp32"]
GRID = (4, 5)


@pytest.fixture(scope="module", params=VERSIONS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Step1XModel:
    folder = tmp_path_factory.mktemp("step1x") / "model"
    return open_step1x(make_step1x(folder, request.param))


def positions(version: str, given: LiteralInputs) -> dict[str, torch.Tensor]:
    """Rotary positions as each version's code writes them down."""
    rows, columns = given.grid_hw
    noisy = torch.tensor([[0.0, r, c] for r in range(rows) for c in range(columns)])
    first = {"1.0": [0.0, 0.0, 0.0], "1.1": [1.0, 1.0, 1.0], "1.2": [1.0, 0.0, 0.0]}[version]
    own = given.prompt.positions
    return {
        "prompt_positions": torch.zeros(given.prompt.embeds.shape[1], 3) if own is None else own,
        "noisy_positions": noisy,
        "clean_positions": noisy + torch.tensor(first),
    }


def literal_record(model: Step1XModel, given: LiteralInputs) -> reference.Step1XRecord:
    tensors = reference.literal_tensors(model.files.transformer)
    heads = model.sizes.connector.heads
    literal = reference.open_literal(
        reference.literal_sizes(tensors, connector_heads=heads), tensors, FP32
    )
    embeds, hidden = given.prompt.embeds, model.sizes.connector.hidden
    assert given.prompt.mask is not None
    with torch.no_grad():
        record: reference.Step1XRecord = literal(
            given.clean_latents,
            given.noise,
            embeds[..., :hidden],
            given.prompt.mask,
            **positions(model.version.name, given),
            timestep=1.0,
            extra=embeds[..., hidden:] if model.sizes.mapping else None,
            feature_block=model.spec.feature_block,
            keep_blocks=True,
        )
    return record


class Tap:
    """What the single step computes on its way, by the names that the transcription has."""

    def __init__(self, model: Step1XModel) -> None:
        self.found: dict[str, torch.Tensor] = {}
        self.dit: Any = model.transformer(FP32).fill()
        double = model.sizes.double
        self.dit.connector.register_forward_hook(self._connector)
        for index, block in enumerate(self.dit.transformer_blocks):
            block.register_forward_hook(self._joined(index))
        singles = [block.norm for block in self.dit.single_transformer_blocks]
        for index, norm in enumerate([*singles, self.dit.last_norm], double - 1):
            # What a single-stream block is given is what the one before it has left.
            norm.register_forward_pre_hook(self._given(index))

    def _connector(self, _module: Any, _args: Any, out: tuple[torch.Tensor, ...]) -> None:
        self.found["tokens"], self.found["pooled"] = out

    def _joined(self, index: int) -> Any:
        return lambda _m, _a, out: self.found.__setitem__(f"block {index}", torch.cat(out, dim=1))

    def _given(self, index: int) -> Any:
        return lambda _m, args: self.found.setdefault(f"block {index}", args[0])

    def run(self, model: Step1XModel, given: LiteralInputs) -> Capture:
        tokens = given.noise.shape[1]
        capture = Capture(
            Spans(given.prompt.embeds.shape[1], tokens, tokens),
            given.prompt_weights,
            model.spec.feature_block,
        )
        grid = torch.from_numpy(np.indices(given.grid_hw).reshape(2, -1).T.copy()).float()
        with torch.no_grad():
            self.dit(given.clean_latents, given.noise, given.prompt, grid, capture)
        return capture


def test_connector_and_every_block(model: Step1XModel) -> None:
    given = literal_inputs(model.spec, GRID)
    wanted = literal_record(model, given)
    tap = Tap(model)
    tap.run(model, given)
    assert wanted.tokens is not None and wanted.pooled is not None
    expected = {"tokens": wanted.tokens, "pooled": wanted.pooled}
    expected |= {f"block {i}": hidden for i, hidden in enumerate(wanted.blocks[:-1])}
    assert len(expected) == 2 + model.spec.blocks - 1  # of the last block no more is asked
    worst = {}
    for name, value in expected.items():
        worst[name] = float((tap.found[name] - value).abs().max() / value.abs().max())
    print(f"Step1X-Edit {model.version.name}, largest differences: {worst}")
    assert max(worst.values()) < 1e-5, worst


@pytest.mark.parametrize("site", ["mmsa", "adaln", "block"])
@pytest.mark.parametrize("block", [1, 3])
def test_what_is_captured(model: Step1XModel, site: str, block: int) -> None:
    given = literal_inputs(model.spec, GRID)
    wanted = model.literal(FP32).dit([given], block)[0]
    spec = replace(model.spec, feature_block=block)
    options = CaptureOptions("vectors", feature_site=site, token_attention=True)
    graph = CaptureGraph(model.transformer(FP32).fill(), spec, options, FP32)
    feeds = {k: torch.from_numpy(v) for k, v in transformer_feeds(given, None).items()}
    with torch.no_grad():
        found = dict(zip(options.outputs, graph(**feeds), strict=True))
    vectors = wanted.attention_vectors
    propagated = (wanted.transition_matrices @ vectors.unsqueeze(-1))[..., 0]
    torch.testing.assert_close(found["attention_vectors"], vectors, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["propagated_vectors"], propagated, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["token_attention"], wanted.token_attention, atol=1e-5, rtol=0)
    features = wanted.features[site]
    torch.testing.assert_close(found["features"], features, atol=1e-5, rtol=1e-5)


@pytest.fixture
def outputs(model: Step1XModel) -> Callable[..., torch.Tensor]:
    """Runs the single step on changed inputs and returns the attention it captures."""
    dit = model.transformer(FP32).fill()

    def run(**changes: Any) -> torch.Tensor:
        given = literal_inputs(model.spec, GRID, batch=1)
        feeds = {k: torch.from_numpy(v) for k, v in transformer_feeds(given, None).items()}
        graph = CaptureGraph(dit, model.spec, CaptureOptions("vectors"), FP32)
        with torch.no_grad():
            vectors: torch.Tensor = graph(**(feeds | changes))[0]
        return vectors

    return run


def test_every_input_of_the_prompt_matters(model: Step1XModel, outputs: Any) -> None:
    given = literal_inputs(model.spec, GRID, batch=1)
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
