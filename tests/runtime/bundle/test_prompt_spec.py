"""Manifests with prompts that look at the picture, as anybody may have written them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rism.runtime import BundleError
from rism.runtime.bundle.reader import Bundle
from tests.runtime.vision_language import make_bundle

Reseal = Callable[..., Path]


@pytest.fixture
def bundle(tmp_path: Path, reseal: Reseal) -> Path:
    return reseal(make_bundle(tmp_path / "looking"))


@pytest.mark.parametrize(
    ("change", "expected_text"),
    [
        (lambda d: d["graphs"].pop("vision_encoder"), "'graphs.vision_encoder' is missing, exp"),
        (lambda d: d["graphs"]["vision_encoder"]["outputs"].clear(), "outputs.image_embeds' is m"),
        (
            lambda d: d["graphs"]["vision_encoder"]["inputs"].update(
                grid=d["graphs"]["vision_encoder"]["inputs"]["patch_positions"]
            ),
            "expected only pixel_values, patch_positions",
        ),
        (
            lambda d: d["prompt"].update(vision=None, positions="none"),
            "'graphs.text_encoder.inputs.position_ids' is an object, expected only input_ids, "
            "attention_mask, quoted_mask: export",
        ),
        (
            lambda d: d["prompt"].update(vision=None),
            "'prompt.positions' is 'grid', expected 'none'",
        ),
        (
            lambda d: d["prompt"].update(positions="none"),
            "inputs.prompt_positions' is an object, expected only clean_latents, noise, prompt_e",
        ),
        (lambda d: d["prompt"]["vision"].update(max_pixels=1), "max_pixels' is 1, expected at le"),
        (lambda d: d["prompt"]["vision"].update(std=[0, 1, 1]), "prompt.vision.std.r' is 0, expe"),
        (lambda d: d["prompt"]["vision"].update(mean=[0.5]), "mean' is a list of 1, expected thr"),
        (lambda d: d["prompt"]["vision"].update(merge=0), "merge' is 0, expected an integer from"),
        (lambda d: d["prompt"]["vision"].update(patch_px=2**40), "expected an integer from 1 to"),
        (lambda d: d["prompt"]["vision"].pop("image_token"), "vision.image_token' is missing, ex"),
        (lambda d: d["prompt"].update(quotes={"style": "odd", "start": 0}), "one of 'toggle', 'p"),
        (lambda d: d["prompt"].update(quotes={"style": "paired"}), "prompt.quotes.start' is miss"),
        (lambda d: d["prompt"].update(quotes=[]), "prompt.quotes' is a list of 0, expected an ob"),
        (lambda d: d["prompt"].update(drop=-1), "prompt.drop' is -1, expected an integer from 0"),
        (lambda d: d["prompt"].update(padding="ones"), "one of 'tokens', 'zeros', 'none'"),
        (lambda d: d["prompt"].update(unseen_id=-1), "prompt.unseen_id' is -1, expected an intege"),
        (
            lambda d: d["prompt"].update(unseen_position=-1),
            "unseen_position' is -1, expected an in",
        ),
        (lambda d: d["prompt"]["vision"].update(arithmetic="mine"), "one of 'pillow', 'torchvisio"),
        (
            lambda d: d["prompt"]["vision"].update(arithmetic="torchvision", resample="lanczos"),
            "vision.resample' is 'lanczos', expected bilinear or bicubic, where 'arithmetic' is",
        ),
        (lambda d: d["prompt"].update(grid_offset_px=1e9), "expected a number from -512 to 512"),
        (lambda d: d["geometry"].update(resize="shrink"), "rounding' is 'ceil', expected 'floor'"),
        (lambda d: d["geometry"].update(resize_in="bits"), "one of 'uint8', 'float32'"),
    ],
)
def test_manifests_that_do_not_fit(
    bundle: Path,
    reseal: Reseal,
    change: Callable[[dict[str, Any]], object],
    expected_text: str,
) -> None:
    with pytest.raises(BundleError) as error:
        Bundle.open(reseal(bundle, change))
    assert expected_text in str(error.value)
    assert "\n" not in str(error.value)


def test_a_vision_encoder_nobody_asked_for_is_ignored(tiny_bundle: Path, reseal: Reseal) -> None:
    """Like any other key that this reader does not know."""
    manifest = Bundle.open(
        reseal(tiny_bundle, lambda d: d["graphs"].update(vision_encoder={}))
    ).manifest
    assert "vision_encoder" not in manifest.graphs
