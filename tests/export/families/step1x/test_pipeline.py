"""The lean runtime on Step1X-Edit's bundles, against the published steps at each version.

Pictures are prepared here as the makers' code prepares them, text is encoded by transformers'
own classes, attention comes from the reference transcription.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from PIL import Image

from rism.export import ExportOptions, export_bundle
from rism.export.families.step1x.model import Step1XModel
from rism.export.parity.inputs import transformer_feeds
from rism.export.precision import PRECISIONS
from rism.export.spec import PromptTokens, ReferenceInputs
from rism.export.triton import TritonOptions, export_triton
from rism.runtime import Segmenter
from rism.runtime.bundle.reader import Bundle
from rism.runtime.method import equations
from rism.runtime.method.upsampling import upsample
from tests.export.families.step1x.small_model import open_step1x, picture
from tests.export.triton.client import recorded, request, same
from tests.export.triton.server import Server
from tests.runtime.engines.cpu import cpu_engines

EXPRESSIONS = ["the small red car", "a dog", "the man's hat", 'the sign "STOP!" there!']
FP32 = PRECISIONS["fp32"]
SIZES = [(64, 48), (90, 241)]


@dataclass(frozen=True)
class Exported:
    """A checkpoint, opened, and its bundle."""

    model: Step1XModel
    bundle: Path


@pytest.fixture(scope="module", params=["1.0", "1.2"])
def step1x(
    request: pytest.FixtureRequest,
    shared: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Exported:
    checkpoint, bundle = shared[request.param], tmp_path_factory.mktemp("step1x") / "bundle"
    export_bundle(str(checkpoint), bundle, ExportOptions())
    return Exported(open_step1x(checkpoint), bundle)


def test_what_it_needs_of_a_reader(step1x: Exported) -> None:
    manifest = json.loads((step1x.bundle / "manifest.json").read_text())
    assert manifest["schema_version"] == "1.4"
    assert manifest["prompt"]["unseen_position"] == 1
    torchvision = step1x.model.version.name == "1.2"
    arithmetic = manifest["prompt"]["vision"].get("arithmetic")
    assert arithmetic == ("torchvision" if torchvision else None)


def published_size(width: int, height: int, level: int) -> tuple[int, int]:
    """The longer side first, both rounded up, then down to whole tokens."""
    ratio = width / height
    if width > height:
        wide = math.ceil(math.sqrt(level * level * ratio))
        high = math.ceil(wide / ratio)
    else:
        high = math.ceil(math.sqrt(level * level / ratio))
        wide = math.ceil(high * ratio)
    return wide // 16 * 16, high // 16 * 16


def published_picture(
    pixels: np.ndarray, version: str, size_wh: tuple[int, int]
) -> tuple[np.ndarray, torch.Tensor]:
    """What the text encoder is shown, and what the VAE is: (h, w, 3) uint8, (1, 3, h, w)."""
    image = Image.fromarray(pixels)
    kind = Image.Resampling.BICUBIC if version == "1.0" else Image.Resampling.LANCZOS
    shown = np.asarray(image.resize(size_wh, kind))
    planes = torch.from_numpy(shown.copy()).permute(2, 0, 1)[None].float() / 255
    if version == "1.2":
        planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        planes = torch.nn.functional.interpolate(
            planes, size_wh[::-1], mode="bilinear", antialias=True
        )
    return shown, planes * 2 - 1


@pytest.mark.slow
@pytest.mark.parametrize("size_wh", SIZES)
def test_everything_between_picture_and_mask(step1x: Exported, size_wh: tuple[int, int]) -> None:
    model, version = step1x.model, step1x.model.version.name
    pixels, reference = picture(*size_wh), model.reference(FP32)
    level = model.spec.geometry.size_level
    wide, high = published_size(*size_wh, level)
    shown, planes = published_picture(pixels, version, (wide, high))

    segmenter = Segmenter.from_bundle(step1x.bundle, provider="cpu")
    state = segmenter.set_image(pixels)
    assert state.plan.resized_wh == (wide, high)
    (clean,) = reference.vae_latents([planes])
    np.testing.assert_allclose(state.clean_latents, clean.numpy(), atol=5e-5)

    results = segmenter.segment(state, EXPRESSIONS, paper=True)
    told = [f"remove {expression}" for expression in EXPRESSIONS]
    prompts = reference.text(told, shown)
    grid_hw = (high // 16, wide // 16)
    noise = torch.from_numpy(np.array(segmenter.bundle.noise()[None, : grid_hw[0] * grid_hw[1]]))
    engine = cpu_engines(segmenter.bundle, "vectors")["transformer"]
    instructions = [segmenter._encoder.instruct(expression) for expression in EXPRESSIONS]
    states, _ = segmenter._embedder.embed(instructions, state)
    for expression, result, ours, theirs in zip(EXPRESSIONS, results, states, prompts, strict=True):
        assert ours.embeds.shape == tuple(theirs.embeds.shape), expression
        scale = float(theirs.embeds.abs().max())
        np.testing.assert_allclose(ours.embeds, theirs.embeds.numpy(), atol=2e-5 * scale)
        assert theirs.mask is not None
        np.testing.assert_array_equal(ours.attention_mask, theirs.mask.numpy())
        if theirs.positions is not None:
            assert ours.positions is not None
            np.testing.assert_allclose(ours.positions, theirs.positions.numpy(), atol=1e-5)
        assert theirs.modulation is not None
        assert ours.modulation is not None
        np.testing.assert_allclose(ours.modulation, theirs.modulation.numpy(), atol=2e-5)
        modulation = theirs.modulation[None]
        tokens = PromptTokens(theirs.embeds[None], theirs.mask[None], theirs.positions, modulation)
        weights = torch.ones(1, len(theirs.embeds))
        batch = ReferenceInputs(clean, noise, tokens, weights, grid_hw)
        (capture,) = reference.dit([batch], model.spec.feature_block)
        vectors, matrices = capture.attention_vectors, capture.transition_matrices
        propagated = (matrices @ vectors.unsqueeze(-1))[..., 0]
        found = engine.run(transformer_feeds(batch))
        np.testing.assert_allclose(found["attention_vectors"], vectors.numpy(), atol=2e-5)
        np.testing.assert_allclose(found["propagated_vectors"], propagated.numpy(), atol=2e-5)
        wanted = equations.segment_tokens(
            vectors[0].numpy(), propagated[0].numpy(), capture.features["mmsa"][0].numpy(),
            tau=model.spec.tau,
        )  # fmt: skip
        mask = upsample(wanted.scores.reshape(grid_hw), state.plan) > 0
        assert result.mask_hw.shape == size_wh[::-1]
        assert (result.mask_hw == mask).mean() > 0.995, expression


@pytest.mark.slow
def test_what_is_the_same_is_computed_once(step1x: Exported) -> None:
    bundle = Bundle.open(step1x.bundle)
    rules = bundle.manifest.prompt
    _, engines, _ = recorded(bundle, picture(131, 97), EXPRESSIONS[:2], "vectors")
    fed, gave = engines["text_encoder"].fed[-1], engines["text_encoder"].gave[-1]
    encoder = cpu_engines(bundle, "vectors")["text_encoder"]
    # Keys and values of the first tokens are constants: nothing asks what the tokens are.
    prefix = step1x.model._prefix_ids.shape[1]
    assert rules.drop - 2 <= prefix <= rules.drop
    for changed, alike in ((prefix - 1, True), (rules.drop + 1, False)):
        ids = fed["input_ids"].copy()
        ids[:, changed] = 5
        again = encoder.run(fed | {"input_ids": ids})["prompt_embeds"]
        assert (np.abs(again - gave["prompt_embeds"]).max() < 1e-6) == alike
    # One row of padding stands for all.
    assert rules.shared_padding == (step1x.model.version.name == "1.0")
    if rules.shared_padding:
        fed, gave = engines["transformer"].fed[-1], engines["transformer"].gave[-1]
        rows = fed["prompt_embeds"].shape[1]
        assert rows == fed["prompt_mask"].sum(1).max() + 1 < rules.max_length
        lacking = ((0, 0), (0, rules.max_length - rows))
        whole = {
            "prompt_embeds": np.pad(fed["prompt_embeds"], (*lacking, (0, 0))),
            "prompt_mask": np.pad(fed["prompt_mask"], lacking),
            "prompt_weights": np.pad(fed["prompt_weights"], lacking, constant_values=1),
        }
        found = cpu_engines(bundle, "vectors")["transformer"].run(fed | whole)
        for name, array in found.items():
            np.testing.assert_allclose(gave[name], array, atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_the_picture_and_every_token_set_matter(step1x: Exported) -> None:
    segmenter = Segmenter.from_bundle(step1x.bundle, provider="cpu")
    state = segmenter.set_image(picture(100, 80))
    maps = [
        segmenter.segment(state, "the red dog", prompt_weights=tokens).coarse
        for tokens in ("all", "valid", "instruction", "expression")
    ]
    # Without padding there is nothing that "valid" leaves out.
    distinct = 3 if step1x.model.version.name == "1.2" else 4
    assert len({one.tobytes() for one in maps}) == distinct
    other = segmenter.segment(picture(80, 100), "the red dog")
    assert other.coarse.shape != maps[0].shape


@pytest.mark.slow
def test_what_the_timestep_decides_is_not_in_the_graph(step1x: Exported) -> None:
    graph = ir.load(step1x.bundle / "transformer.vectors.onnx").graph
    names = set(graph.initializers)
    gone = ("time_embed.", "connector.S.t_embedder.", "norm_out.", "proj_out.")
    assert not [name for name in names if name.removeprefix("dit.").startswith(gone)]
    # What the prompt decides alone is in a graph of its own, of the last block without its gate.
    gone = ("norm1.linear", "norm1_context.linear", "norm.linear", "vec_embed")
    assert not [name for name in names if any(part in name for part in gone)]
    modulation = ir.load(step1x.bundle / "modulation.onnx").graph
    sizes = step1x.model.sizes
    last = modulation.initializers[f"single_transformer_blocks.{sizes.single - 1}.norm.linear.bias"]
    assert last.shape == (2 * sizes.width,)
    [rows] = modulation.outputs
    width = (12 * sizes.double + 3 * sizes.single - 1) * sizes.width
    assert rows.shape is not None
    assert list(rows.shape) == ["batch", width]
    manifest = Bundle.open(step1x.bundle).manifest
    assert manifest.graph("transformer.vectors").inputs["modulation"].shape == ("batch", width)


@pytest.mark.slow
def test_a_server_gives_the_same(step1x: Exported, tmp_path: Path) -> None:
    bundle = Bundle.open(step1x.bundle)
    server = Server(export_triton(bundle, tmp_path / "out", TritonOptions(link=True)).path)
    joins = step1x.model.version.name == "1.0"
    assert server.configs["transformer_vectors"].max_batch_size == (8 if joins else 0)
    asked = EXPRESSIONS if joins else ["the small red car", "the red small car"]
    _, engines, _ = recorded(bundle, picture(131, 97), asked, "vectors")
    [answer] = server.infer("rism_vectors", request(server, "rism_vectors", engines))
    same(answer, engines["transformer"].gave[-1])
