"""The built-in model: what it is made of, and that it does what the README says."""

import json
from threading import Event

import numpy as np
import pytest
from PIL import Image

from rism.evaluation.metrics.iou import Overlap, overlap, summarise
from rism.evaluation.scenes.judged import judged_scene
from rism.runtime import Segmenter
from rism.runtime.bundle.reader import Bundle
from rism.runtime.method.upsampling import upsample
from tests.paths import EXAMPLES, MINI, ROOT, STREET

CHECKPOINT = ROOT / "export/builtin/mini"


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter.from_bundle(provider="cpu")


def test_checkpoint_and_bundle_are_small() -> None:
    files = [*CHECKPOINT.rglob("*"), *MINI.rglob("*")]
    assert sum(path.stat().st_size for path in files if path.is_file()) < 40_000_000


def test_the_bundle_was_exported_from_the_checkpoint() -> None:
    from rism.export.checkpoint.locate import content_digest
    from rism.export.families.find import find_checkpoint

    model = Bundle.open(MINI).manifest.model
    assert model.revision == content_digest(find_checkpoint("mini").folders, Event())
    assert model.demonstrator


def test_the_examples_are_found(segmenter: Segmenter) -> None:
    entries = json.loads((EXAMPLES / "examples.json").read_text())
    found = {}
    for entry in entries:
        truth = np.asarray(Image.open(EXAMPLES / entry["truth"])) > 127
        mask = segmenter.segment(EXAMPLES / entry["image"], entry["expression"]).mask
        found[entry["image"]] = overlap(mask, truth).iou
    assert len(found) == 10
    assert sum(iou >= 0.5 for iou in found.values()) >= 8, found


@pytest.mark.parametrize("scenes", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_each_part_of_the_method_adds_something(segmenter: Segmenter, scenes: int) -> None:
    found: dict[str, list[Overlap]] = {"CAM": [], "RAM": [], "full": []}
    for index in range(scenes):
        scene, expression = judged_scene(index)
        truth = scene.objects[expression.target].mask_hw
        result = segmenter.segment(scene.image_hwc, expression.text, paper=True)
        maps = [upsample(m, result.plan) > 0.5 for m in (result.coarse, result.refined)]
        for name, mask in zip(found, (*maps, result.mask), strict=True):
            found[name].append(overlap(mask, truth))
    for metric in ("mIoU", "oIoU"):
        coarse, refined, full = (summarise(each)[metric] for each in found.values())
        assert full > refined > coarse
        assert full >= 0.60


def test_capture_modes_give_the_same_masks(segmenter: Segmenter) -> None:
    entries = json.loads((EXAMPLES / "examples.json").read_text())[:3]
    for capture in ("matrices", "scores"):
        other = Segmenter.from_bundle(provider="cpu", capture=capture)
        for entry in entries:
            picture = EXAMPLES / entry["image"]
            ours = segmenter.segment(picture, entry["expression"], paper=True)
            theirs = other.segment(picture, entry["expression"], paper=True)
            assert (ours.mask != theirs.mask).mean() < 1e-4
            assert ours.separability == pytest.approx(theirs.separability, rel=1e-3)


def test_the_pipeline_of_diffusers_loads_it_and_edits_a_picture() -> None:
    torch = pytest.importorskip("torch")
    from diffusers import Flux2KleinPipeline

    pipeline = Flux2KleinPipeline.from_pretrained(CHECKPOINT, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    settings = json.loads((CHECKPOINT / "rism.json").read_text())
    picture = Image.open(STREET).convert("RGB").resize((144, 112))
    truth = Image.open(EXAMPLES / "truth/street.png").resize((144, 112))
    edited = pipeline(
        image=picture,
        prompt="remove the green van",
        num_inference_steps=4,
        max_sequence_length=settings["max_sequence_length"],
        text_encoder_out_layers=tuple(settings["text_encoder_out_layers"]),
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert edited.size == picture.size
    change = np.abs(np.asarray(edited, float) - np.asarray(picture, float)).mean(-1)
    inside = np.asarray(truth) > 127
    assert change[inside].mean() > 2 * change[~inside].mean()
