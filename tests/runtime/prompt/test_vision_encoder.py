"""Bundles whose text encoder looks at the image: from the image to the scores."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from rism.runtime import InputError, Segmenter
from rism.runtime.bundle.prompt_spec import PromptRules
from rism.runtime.bundle.reader import Bundle
from rism.runtime.image import geometry, vision_patches
from rism.runtime.method.equations import segment_tokens
from rism.runtime.prompt import position_ids
from rism.runtime.prompt.encoder import PromptEncoder
from rism.runtime.result.segmentation import Segmentation
from tests.conftest import Reseal, fix_batch
from tests.runtime.spies import spied
from tests.runtime.vision_language import (
    AXES,
    LIGHT,
    SMALL,
    WORDS,
    make_bundle,
    rules,
    table,
    tokenizer,
)


def first_generation() -> PromptRules:
    return rules(vision=SMALL.vision, max_length=90)


def expected(folder: Path, image: np.ndarray, expression: str) -> np.ndarray:
    """Score map, coarse, refined and each token's map; every graph repeated in NumPy."""
    opened = Bundle.open(folder)
    prompt, own = opened.manifest.prompt, opened.manifest.geometry
    assert prompt.vision is not None
    plan = geometry.plan((image.shape[1], image.shape[0]), own)
    left, top, right, bottom = plan.crop_xyxy
    resample = Image.Resampling[prompt.vision.view_resample.upper()]
    whole = np.asarray(Image.fromarray(image).resize(plan.resized_wh, resample))
    model_wh = (right - left, bottom - top)
    seen = vision_patches.view(whole[top:bottom, left:right], model_wh, prompt.vision)
    cells = vision_patches.merged_grid(seen, prompt.vision)
    patches = vision_patches.pixel_values(seen, prompt.vision).reshape(-1, 3, 32)
    places = vision_patches.patch_positions(seen.grid_hw, prompt.vision)
    embedded = (patches.mean(2) + 0.01 * places.mean(1, keepdims=True)).reshape(-1, 4, 3).mean(1)
    encoder = PromptEncoder(prompt, opened.tokenizer_json())
    told = encoder.encode([expression], image_tokens=len(embedded))
    ids = told.input_ids[0]
    is_image = ids == tokenizer().token_to_id("<|image_pad|>")
    stand = position_ids.position_ids(
        told.input_ids, told.seen_mask, image_token_id=int(ids[is_image][0]),
        grid_hw=seen.grid_hw, merge=prompt.vision.merge,
    )  # fmt: skip
    embeds = table()[ids]
    embeds[is_image] += embedded
    embeds += ((stand * AXES).sum(0)[0] + told.quoted_mask[0])[:, None]
    embeds *= told.attention_mask[0][:, None]
    embeds = embeds[prompt.drop :]
    mask = np.ones(len(embeds))
    if prompt.padding == "zeros":
        missing = prompt.max_length - len(embeds)
        embeds = np.pad(embeds, ((0, missing), (0, 0)))
        mask = np.pad(mask, (0, missing))
    placed = np.zeros((len(embeds), 3))
    if prompt.positions == "grid":
        placed = position_ids.prompt_positions(
            stand[0, 0, prompt.drop :], is_image[prompt.drop :], view_wh=seen.size_wh,
            model_wh=model_wh, grid_hw=cells,
            offset_px=prompt.grid_offset_px, token_px=own.token_px,
        ).astype(float)  # fmt: skip
    x = geometry.normalise(geometry.resize(image, plan, own), plan, own)[0]
    x = x.reshape(3, plan.grid_hw[0], 8, plan.grid_hw[1], 8).mean((2, 4)).reshape(3, -1).T
    words = (embeds + 0.01 * placed.mean(1, keepdims=True) + LIGHT) * mask[:, None]
    a = x @ words.sum(0)
    like = np.exp(x @ x.T)
    propagated = (like / like.sum(1, keepdims=True)) @ a
    features = x + 0.01 * np.asarray(opened.noise())[: len(x)]
    features += 0.01 * geometry.positions(plan.grid_hw).mean(1, keepdims=True)
    given = (each.astype(np.float32) for each in (a[None], propagated[None], features))
    found = segment_tokens(*given, tau=0.8, rule="equation")
    maps = np.stack([found.scores, found.coarse, found.refined])
    maps = np.concatenate([maps, (x @ words[: len(told.tokens[0])].T).T])
    return maps.reshape(-1, *plan.grid_hw)


def maps_of(result: Segmentation) -> np.ndarray:
    assert result.token_attention is not None
    maps = np.stack([result.score_map, result.coarse, result.refined])
    return np.concatenate([maps, result.token_attention])


@pytest.mark.parametrize("given", [SMALL, first_generation()], ids=["grid", "zeros"])
def test_against_numpy(
    tmp_path: Path, reseal: Reseal, colours: np.ndarray, given: PromptRules
) -> None:
    folder = make_bundle(tmp_path / "b", given)
    if given.positions == "none":
        unplaced(folder)
    segmenter = Segmenter.from_bundle(reseal(folder), provider="cpu", threads=1, max_batch=2)
    found = segmenter.segment(colours, WORDS)
    assert [result.expression for result in found] == WORDS
    for result in found:
        wanted = expected(folder, colours, result.expression)
        np.testing.assert_allclose(maps_of(result), wanted, atol=1e-4)
        alone = segmenter.segment(colours, result.expression)
        np.testing.assert_allclose(maps_of(alone), wanted, atol=1e-4)
        assert result.token_attention is not None
        assert result.token_attention.shape == (len(result.tokens), *result.plan.grid_hw)
        assert result.tokens.count("<|image_pad|>") >= 8


def unplaced(folder: Path) -> None:
    """Leave the input "prompt_positions" out of the transformer."""
    model = onnx.load(folder / "transformer.onnx")
    (node,) = [node for node in model.graph.node if "placed" in node.input]
    node.input[0] = "w"  # any tensor: what it makes is thrown away
    (add,) = [node for node in model.graph.node if "small" in node.input and "embeds" in node.input]
    add.input[1] = "nothing"
    nothing = onnx.numpy_helper.from_array(np.float32(0), "nothing")
    model.graph.initializer.append(nothing)
    (value,) = [value for value in model.graph.input if value.name == "placed"]
    model.graph.input.remove(value)
    onnx.save_model(model, folder / "transformer.onnx")
    data = json.loads((folder / "manifest.json").read_text())
    del data["graphs"]["transformer.vectors"]["inputs"]["prompt_positions"]
    (folder / "manifest.json").write_text(json.dumps(data))


@pytest.mark.parametrize("size_wh", [(160, 96), (96, 160), (700, 100), (33, 40)])
def test_images_of_many_sizes(vision_bundle: Path, size_wh: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*size_wh[::-1], 3), dtype=np.uint8)
    result = Segmenter.from_bundle(vision_bundle, provider="cpu").segment(image, WORDS[1])
    assert result.mask.shape == size_wh[::-1]
    np.testing.assert_allclose(maps_of(result), expected(vision_bundle, image, WORDS[1]), atol=1e-4)


def test_the_text_encoder_sees_what_the_model_sees(
    tmp_path: Path, reseal: Reseal, colours: np.ndarray
) -> None:
    """A cut-off border is cut off for both."""
    changes = {"remainder": "crop", "rounding": "floor", "resize_in": "uint8", "multiple_px": 16}
    folder = reseal(make_bundle(tmp_path / "b", **changes))
    image = np.pad(colours, ((0, 7), (0, 9), (0, 0)), mode="reflect")
    segmenter = Segmenter.from_bundle(folder, provider="cpu")
    state = segmenter.set_image(image)
    assert state.plan.crop_xyxy[:2] != (0, 0)
    found = maps_of(segmenter.segment(state, "a van"))
    np.testing.assert_allclose(found, expected(folder, image, "a van"), atol=1e-4)


def test_tokens_without_a_place_are_run_apart(vision_bundle: Path, colours: np.ndarray) -> None:
    """Of one length, but standing elsewhere: "!" has no position of its own."""
    segmenter, spies = spied(vision_bundle)
    words = ["a ! a", "a a !", "a ? a", "a ! a"]
    found = segmenter.segment(colours, words)
    fed = spies["transformer"].fed
    assert len({feeds["prompt_embeds"].shape[1] for feeds in fed}) == 1
    assert [len(feeds["prompt_embeds"]) for feeds in fed] == [2, 1, 1]
    for result in found:
        wanted = expected(vision_bundle, colours, result.expression)
        np.testing.assert_allclose(maps_of(result), wanted, atol=1e-4)


def test_an_image_is_resized_once_where_one_resize_serves_both(
    tmp_path: Path, reseal: Reseal, colours: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int]] = []
    image = colours[:, :120].copy()
    real = Image.Image.resize

    def resize(self: Image.Image, size: tuple[int, int], *rest: Any, **more: Any) -> Image.Image:
        made.append(size)
        return real(self, size, *rest, **more)

    monkeypatch.setattr(Image.Image, "resize", resize)
    counts = {}
    for name, changes in {
        "one": {"resample": "lanczos", "resize_in": "uint8"},
        "other filter": {"resample": "bilinear", "resize_in": "uint8"},
        "no 8 bits": {"resample": "lanczos", "resize_in": "float32"},
    }.items():
        folder = reseal(make_bundle(tmp_path / name, **changes))
        made.clear()
        state = Segmenter.from_bundle(folder, provider="cpu").set_image(image)
        counts[name] = made.count(state.plan.resized_wh)
    assert counts == {"one": 1, "other filter": 2, "no 8 bits": 4}


def test_fixed_batches_are_filled_up(
    vision_bundle: Path, reseal: Reseal, colours: np.ndarray
) -> None:
    wanted = Segmenter.from_bundle(vision_bundle, provider="cpu").segment(colours, WORDS)
    fix_batch(vision_bundle, "text_encoder", 4)
    fix_batch(vision_bundle, "transformer.vectors", 3)
    found = Segmenter.from_bundle(reseal(vision_bundle), provider="cpu").segment(colours, WORDS)
    assert [result.expression for result in found] == WORDS
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours.score_map, theirs.score_map, atol=1e-6)


def test_a_refiners_answer_counts_the_image(vision_bundle: Path, colours: np.ndarray) -> None:
    """Without the image's tokens this answer would be short enough."""

    def long(instruction: str, image_hwc: np.ndarray) -> str:
        return instruction + " a" * 40

    segmenter = Segmenter.from_bundle(vision_bundle, provider="cpu", refiner=long)
    with pytest.raises(InputError) as error:
        segmenter.segment(colours, "van")
    assert "unusable instruction: the instruction 'remove van a a" in str(error.value)
    assert "of the image), expected at most 90: shorten it" in str(error.value)
