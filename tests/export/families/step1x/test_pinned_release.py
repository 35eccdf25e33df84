"""Prompts of Step1X-Edit, against what the makers' code gives on the releases that it pins.

docs/step1x.md says how the truth was recorded, once.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rism.export.families.step1x.model import Step1XModel
from rism.export.parity.inputs import Samples, text_feeds, vision_feeds
from rism.export.precision import PRECISIONS
from rism.runtime.prompt.position_ids import prompt_positions
from tests.export.families.step1x.small_model import VERSIONS, make_step1x, open_step1x

RECORDED = json.loads(Path(__file__).with_name("pinned_release.json").read_text(encoding="utf-8"))
Opened = tuple[Step1XModel, Any, Any]


def projected(hidden: torch.Tensor) -> torch.Tensor:
    """One number for each of (S, W) hidden states, which any change of it moves."""
    return hidden.double() @ torch.cos(torch.arange(hidden.shape[-1], dtype=torch.float64))


@pytest.fixture(scope="module", params=VERSIONS)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """The same small random checkpoint, and its two text modules."""
    version, fp32 = request.param, PRECISIONS["fp32"]
    layout = "original" if version == "1.0" else "diffusers"
    model = open_step1x(make_step1x(tmp_path_factory.mktemp("a") / "b", version, layout=layout))
    return model, model.vision_encoder(fp32).fill(), model.text_encoder(fp32).fill()


@pytest.mark.parametrize("case", range(len(RECORDED["1.0"]["cases"])))
def test_a_prompt_is_the_releases(opened: Opened, case: int) -> None:
    model, vision, text = opened
    spec, rules, version = model.spec, model.spec.prompt, model.version.name
    assert rules.vision is not None
    wanted = RECORDED[version]["cases"][case]
    size_wh = (wanted["size_wh"][0], wanted["size_wh"][1])
    expression = wanted["instruction"].removeprefix("remove ")
    shape, none = (*size_wh[::-1], 3), torch.zeros(0)
    pixels = np.random.default_rng(size_wh[0]).integers(0, 256, shape, dtype=np.uint8)
    sample = Samples((0, 0), size_wh, pixels, none, (expression,), (wanted["instruction"],))
    looked, grid_hw = vision_feeds(spec, sample)
    with torch.no_grad():
        seen = vision(**{name: torch.from_numpy(x) for name, x in looked.items()})
        feeds, encoded = text_feeds(spec, model.tokenizer_json, sample, seen)
        hidden = text(**{name: torch.from_numpy(x) for name, x in feeds.items()})[0]
    ids, positions = feeds["input_ids"][0, rules.drop :], feeds["position_ids"][:, 0, rules.drop :]
    assert feeds["input_ids"].shape == (1, wanted["tokens"])
    assert ids.tolist() == wanted["ids"]
    assert positions.tolist() == wanted["positions"]
    found = projected(hidden[:, : spec.text_dim])
    np.testing.assert_allclose(found, wanted["hidden"], atol=1e-4)
    if version == "1.2":
        assert encoded.quoted_mask[0, rules.drop :].tolist() == wanted["quoted"]
        placed = prompt_positions(
            positions[0],
            ids == model.tokenizer.convert_tokens_to_ids("<|image_pad|>"),
            view_wh=size_wh,
            model_wh=size_wh,
            grid_hw=(grid_hw[0] // rules.vision.merge, grid_hw[1] // rules.vision.merge),
            offset_px=rules.grid_offset_px,
            token_px=spec.geometry.token_px,
        )
        assert placed[:, 0].tolist() == wanted["times"]
