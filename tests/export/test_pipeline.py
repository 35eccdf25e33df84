"""The lean runtime against the real Flux2KleinPipeline, whose call is stopped at its first step."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image

from rism.export import ExportReport
from rism.export.families.find import find_checkpoint
from rism.export.families.flux2.klein import open_klein
from rism.export.families.flux2.reference import _Recorder
from rism.runtime import Segmenter
from rism.runtime.bundle.reader import Bundle
from rism.runtime.image.geometry import positions
from rism.runtime.prompt.encoder import PromptEncoder
from tests.export.small import SETTINGS, make_checkpoint
from tests.runtime.engines.cpu import cpu_engines

EXPRESSION = "the small red car"


class FirstStepError(Exception):
    """The first step was reached."""


@dataclass(frozen=True)
class Step:
    """What the pipeline gives its transformer at the first step, and what that computes."""

    inputs: dict[str, torch.Tensor]
    recorder: _Recorder


def first_step(pipeline: Flux2KleinPipeline, image: Image.Image, bundle: Bundle) -> Step:
    """Call the pipeline with the bundle's noise; stop when it calls its transformer."""
    seen: dict[str, Any] = {}

    def stop(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)
        raise FirstStepError

    token = bundle.manifest.geometry.token_px
    columns, rows = (side // token for side in image.size)
    noise = torch.from_numpy(np.array(bundle.noise()[: rows * columns]))
    latents = noise.T.reshape(1, -1, rows, columns)
    hook = pipeline.transformer.register_forward_pre_hook(stop, with_kwargs=True)
    with pytest.raises(FirstStepError):
        pipeline(
            image=image,
            prompt=f"remove {EXPRESSION}",
            num_inference_steps=1,
            guidance_scale=1.0,
            latents=latents,
            max_sequence_length=bundle.manifest.prompt.max_length,
            text_encoder_out_layers=SETTINGS["text_encoder_out_layers"],
        )
    hook.remove()
    recorder = _Recorder(
        pipeline.transformer,
        prompt=seen["encoder_hidden_states"].shape[1],
        clean=rows * columns,
        feature_block=bundle.manifest.method.feature_block,
    )
    with recorder, torch.no_grad():
        pipeline.transformer(**seen)
    return Step(seen, recorder)


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Flux2KleinPipeline:
    loaded = Flux2KleinPipeline.from_pretrained(checkpoint)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.mark.parametrize("size_wh", [(64, 64), (93, 70), (66, 131)])
def test_everything_between_picture_and_method(
    exported: ExportReport, pipeline: Flux2KleinPipeline, size_wh: tuple[int, int]
) -> None:
    rng = np.random.default_rng(size_wh[0])
    pixels = rng.integers(0, 255, (size_wh[1], size_wh[0], 3), dtype=np.uint8)
    bundle = Bundle.open(exported.path)
    step = first_step(pipeline, Image.fromarray(pixels), bundle)
    tokens = len(step.recorder.to_clean[0][0])

    segmenter = Segmenter.from_bundle(bundle.path, provider="cpu")
    state = segmenter.set_image(pixels)
    assert state.plan.tokens == tokens
    clean = step.inputs["hidden_states"][:, tokens:].numpy()
    np.testing.assert_allclose(state.clean_latents, clean, atol=2e-5)
    np.testing.assert_allclose(
        step.inputs["hidden_states"][0, :tokens].numpy(), bundle.noise()[:tokens], atol=0
    )
    assert step.inputs["timestep"].item() == bundle.manifest.method.timestep

    engines = cpu_engines(bundle, "vectors")
    encoded = PromptEncoder(bundle.manifest.prompt, bundle.tokenizer_json()).encode([EXPRESSION])
    embeds = engines["text_encoder"].run(
        {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}
    )["prompt_embeds"]
    wanted = step.inputs["encoder_hidden_states"].numpy()
    assert embeds.shape == wanted.shape
    np.testing.assert_allclose(embeds, wanted, atol=2e-5 * max(1, np.abs(wanted).max()))

    got = engines["transformer"].run(
        {
            "clean_latents": state.clean_latents,
            "noise": bundle.noise()[None, :tokens],
            "prompt_embeds": embeds,
            "prompt_weights": np.ones(encoded.input_ids.shape, np.float32),
            "positions": positions(state.plan.grid_hw),
        }
    )
    vectors = torch.stack([block.sum(-1) for block in step.recorder.to_prompt], 1)
    matrices = torch.stack(step.recorder.to_clean, 1)
    matrices /= matrices.sum(-1, keepdim=True)
    propagated = (matrices @ vectors.unsqueeze(-1))[..., 0]
    blocks = bundle.manifest.method.double_blocks + bundle.manifest.method.single_blocks
    assert got["attention_vectors"].shape == (1, blocks, tokens)
    np.testing.assert_allclose(got["attention_vectors"], vectors.numpy(), atol=2e-5)
    np.testing.assert_allclose(got["propagated_vectors"], propagated.numpy(), atol=2e-5)
    features = step.recorder.features["mmsa"].numpy()
    np.testing.assert_allclose(
        got["features"], features, atol=2e-5 * max(1, float(np.abs(features).max()))
    )


@pytest.mark.parametrize(("double", "single", "block"), [(5, 20, 16), (8, 24, 20)])
def test_the_paper_s_block(tmp_path: Path, double: int, single: int, block: int) -> None:
    """Of the published 4B and 9B."""
    make_checkpoint(
        tmp_path / "published",
        settings=SETTINGS | {"feature_block": None},
        num_layers=double,
        num_single_layers=single,
    )
    assert open_klein(find_checkpoint(str(tmp_path / "published"))).spec.feature_block == block
