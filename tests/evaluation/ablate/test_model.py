"""The whole model, every step of it: against the bundle, diffusers and the reference models."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
from diffusers.models.normalization import AdaLayerNormContinuous
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline, compute_empirical_mu
from PIL import Image
from safetensors.torch import load_file, save_file

from rism.evaluation.ablate.capture import WideCapture
from rism.evaluation.ablate.grid import SITES, ChoiceSetting
from rism.evaluation.ablate.model import AblationModel, ModelOptions
from rism.evaluation.ablate.setting_masks import Pass, masks
from rism.evaluation.ablate.study import Study, open_grid, source_of
from rism.evaluation.datasets.scenes import SceneSet
from rism.export.attention_capture import Spans
from rism.export.families.flux2.reference import reference_capture
from rism.export.families.step1x.reference import ReferenceStep1X, makers_tensors
from rism.export.families.step1x.reference_blocks import Weights
from rism.export.precision import PRECISIONS
from rism.export.spec import PromptTokens, ReferenceInputs
from rism.runtime import Segmenter
from rism.runtime.errors import InputError, ProviderError
from rism.runtime.image_encoder import ImageState
from rism.runtime.prompt.encoder import PromptState
from tests.cli.conftest import invoke
from tests.export.families.flux2.test_single_file import makers_transformer
from tests.export.families.step1x.small_model import make_step1x, open_step1x, picture
from tests.export.small import make_checkpoint

EveryStep = tuple[ImageState, PromptState, list[Pass]]
SCENES = SceneSet("plain", "test", 3)
# As much as the export's gate allows: outputs, and the share of a mask's pixels.
OUTPUT, MASK = 2e-5, 1e-3
BICUBIC, LANCZOS = Image.Resampling.BICUBIC, Image.Resampling.LANCZOS


@pytest.fixture(scope="module")
def model() -> AblationModel:
    return AblationModel(ModelOptions())


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter.from_bundle(provider="cpu")


def far(found: Any, wanted: torch.Tensor) -> float:
    """Largest difference over the larger of 1 and the largest wanted value."""
    difference = (torch.as_tensor(found) - wanted).abs().max()
    return float(difference / wanted.abs().max().clamp_min(1))


def test_the_choice_of_a_bundle_is_what_it_answers(
    model: AblationModel, segmenter: Segmenter
) -> None:
    sample, thin = SCENES.samples[0], segmenter.manifest.method.noisy_grid
    study = Study(timesteps=[0], blocks=[5], sites=["mmsa"], noisy_grids=[thin])
    grid = open_grid(model, study)
    plan, passes = source_of(model, grid)(sample.image, SCENES.image(sample), sample.expression)
    passes = list(passes)
    found = dict(masks(grid, passes, plan))
    result = segmenter.segment(SCENES.image(sample), sample.expression, paper=True)
    assert result.mask.any() and result.mask.shape == SCENES.mask(sample).shape
    assert (found[ChoiceSetting("all", thin)] != result.mask).mean() <= MASK
    assert passes[-1].noisy_grid == thin > 1
    vectors = passes[-1].attention_vectors, passes[-1].propagated_vectors
    for each, shown in zip(vectors, (result.coarse, result.refined), strict=True):
        total = each.sum(0).reshape(shown.shape)
        normal = (total - total.min()) / (total.max() - total.min())
        assert np.abs(normal - shown).max() <= OUTPUT


@pytest.fixture(scope="module")
def every_step(model: AblationModel) -> EveryStep:
    """An image, a prompt, and all passes with all features."""
    sample = SCENES.samples[0]
    state = model.state(SCENES.image(sample))
    prompt = model.prompt(state, sample.expression)
    options = {"timesteps": range(4), "blocks": range(8), "sites": SITES}
    return state, prompt, list(model.passes(state, prompt, **options))


@torch.no_grad()
def test_every_step_is_the_pipelines(
    model: AblationModel, segmenter: Segmenter, every_step: EveryStep
) -> None:
    """Diffusers' transformer and scheduler give the same trajectory and the same captures."""
    state, prompt, passes = every_step
    folder, tokens = model.checkpoint.folder, state.plan.tokens
    transformer = Flux2Transformer2DModel.from_pretrained(folder / "transformer").eval()
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(
        sigmas=np.linspace(1.0, 1 / 4, 4), mu=compute_empirical_mu(tokens, num_steps=4)
    )
    clean, embeds = torch.from_numpy(state.clean_latents), torch.from_numpy(prompt.embeds)[None]
    latents = torch.from_numpy(segmenter.bundle.noise()[None, :tokens].copy())
    grid = torch.zeros(1, latents.shape[2], *state.plan.grid_hw)
    ids = [
        Flux2KleinPipeline._prepare_latent_ids(grid),
        Flux2KleinPipeline._prepare_image_ids([grid]),
    ]
    for found, timestep in zip(passes, scheduler.timesteps, strict=True):
        block = (7, 0, 5, 7)[found.timestep]
        reference = reference_capture(
            transformer, clean_latents=clean, noise=latents, prompt_embeds=embeds,
            grid_hw=state.plan.grid_hw, prompt_weights=torch.ones(1, embeds.shape[1]),
            feature_block=block, timestep=float(timestep) / 1000,
        )  # fmt: skip
        vectors, matrices = reference.attention_vectors[0], reference.transition_matrices[0]
        assert far(found.attention_vectors, vectors) < OUTPUT
        assert far(found.propagated_vectors, (matrices @ vectors[..., None])[..., 0]) < OUTPUT
        for site in SITES:
            # Differences of the earlier steps have gone through the whole model again.
            assert far(found.features[site, block], reference.features[site][0]) < 10 * OUTPUT
        velocity = transformer(
            hidden_states=torch.cat([latents, clean], dim=1),
            encoder_hidden_states=embeds,
            timestep=timestep.expand(1) / 1000,
            img_ids=torch.cat(ids, dim=1),
            txt_ids=Flux2KleinPipeline._prepare_text_ids(embeds),
            return_dict=False,
        )[0][:, :tokens]
        assert velocity.abs().max() > 0.1
        assert far(found.velocity, velocity[0]) < 10 * OUTPUT
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]


def test_a_step_on_the_way_keeps_nothing_and_changes_nothing(
    model: AblationModel, every_step: EveryStep
) -> None:
    state, prompt, passes = every_step
    [found] = model.passes(state, prompt, timesteps=[2], blocks=[3], sites=["adaln"])
    assert found.timestep == 2 and list(found.features) == [("adaln", 3)]
    assert (found.propagated_vectors == passes[2].propagated_vectors).all()
    assert (found.features["adaln", 3] == passes[2].features["adaln", 3]).all()
    assert far(passes[3].attention_vectors, torch.from_numpy(passes[0].attention_vectors)) > 1e-4


def test_narrow_features_keep_their_directions() -> None:
    """The residual stream of large models passes float16's largest number."""
    capture = WideCapture(
        Spans(1, 2, 2), torch.ones(1, 1), -1,
        blocks=frozenset({4}), sites=("block",), storage=torch.float16,
    )  # fmt: skip
    wide = torch.tensor([[[3e5, -1e5, 2.0], [0.0, 0.0, 0.0]]])
    capture.keep("block", 4, wide)
    capture.keep("block", 3, wide)
    capture.keep("mmsa", 4, wide)
    assert list(capture.kept) == [("block", 4)]
    kept = capture.kept["block", 4].float()
    assert kept.isfinite().all() and kept[0, 1].abs().max() == 0
    torch.testing.assert_close(kept[0, 0] * 3e5, wide[0, 0], rtol=1e-3, atol=1.0)


def test_the_published_schedules(model: AblationModel, tmp_path: Path) -> None:
    """Sigmas by the published formulas: exp(mu) / (exp(mu) + 1 / s - 1)."""

    def shifted(mu: float, steps: int) -> np.ndarray:
        even = np.linspace(1, 0, steps + 1)[:-1]
        return np.append(np.exp(mu) / (np.exp(mu) + 1 / even - 1), 0)

    tokens = 256
    # FLUX.2's pipeline draws a line through its two empirical ones, at 10 and 200 steps.
    at_10, at_200 = 8.73809524e-05 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666
    mu = at_10 + (at_200 - at_10) * (4 - 10) / 190
    np.testing.assert_allclose(model.sigmas(tokens), shifted(mu, 4), atol=1e-6)
    step1x = AblationModel(ModelOptions(str(make_step1x(tmp_path / "model", "1.0"))))
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    np.testing.assert_allclose(step1x.sigmas(tokens), shifted(mu, 28), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("version", ["1.0", "1.2"])
def test_step1x_is_its_reference(tmp_path: Path, version: str) -> None:
    path = make_step1x(tmp_path / "model", version)
    model, opened = AblationModel(ModelOptions(str(path), steps=2)), open_step1x(path)
    state = model.state(picture(96, 80))
    prompt = model.prompt(state, "the green van")
    seen = Image.fromarray(picture(96, 80)).resize(
        state.plan.resized_wh, BICUBIC if version == "1.0" else LANCZOS
    )
    reference, last = opened.reference(PRECISIONS["fp32"]), opened.spec.blocks - 1
    [encoded] = reference.text(["remove the green van"], np.asarray(seen))
    assert far(prompt.embeds, encoded.embeds) < OUTPUT
    passes = list(model.passes(state, prompt, timesteps=[0, 1], blocks=[last], sites=SITES))
    given = PromptTokens(
        torch.from_numpy(prompt.embeds)[None],
        torch.from_numpy(prompt.attention_mask)[None].float(),
        None if prompt.positions is None else torch.from_numpy(prompt.positions),
    )
    tokens = state.plan.tokens
    noise = torch.from_numpy(model._noise[None, :tokens].copy())
    clean = torch.from_numpy(state.clean_latents)
    weights = torch.ones(1, given.embeds.shape[1])
    inputs = ReferenceInputs(clean, noise, given, weights, state.plan.grid_hw)
    [wanted] = reference.dit([inputs], last)
    vectors, matrices = wanted.attention_vectors[0], wanted.transition_matrices[0]
    assert far(passes[0].attention_vectors, vectors) < OUTPUT
    assert far(passes[0].propagated_vectors, (matrices @ vectors[..., None])[..., 0]) < OUTPUT
    for site in SITES:
        assert far(passes[0].features[site, last], wanted.features[site][0]) < OUTPUT
    latents, sigmas = noise, model.sigmas(tokens)
    for step, found in enumerate(passes):
        velocity = reference_velocity(opened, inputs, latents, sigmas[step])
        assert far(found.velocity, velocity[0]) < 10 * OUTPUT
        latents = latents + (sigmas[step + 1] - sigmas[step]) * velocity


def reference_velocity(
    opened: Any, inputs: ReferenceInputs, latents: torch.Tensor, sigma: float
) -> torch.Tensor:
    """The transcribed blocks, then diffusers' final norm and the stored projection."""
    store, sizes, prompt = opened.files.transformer, opened.sizes, inputs.prompt

    def stored(layer: str) -> list[torch.Tensor]:
        return [store[f"{layer}.{kind}"].read().float() for kind in ("weight", "bias")]

    blocks = ReferenceStep1X(sizes, Weights(makers_tensors(store), PRECISIONS["fp32"]))
    norm = AdaLayerNormContinuous(sizes.width, sizes.width, elementwise_affine=False, eps=1e-6)
    scale_shift = stored("norm_out.linear")
    if opened.version.name == "1.0":  # the makers' file has the shift first
        scale_shift = [each.roll(sizes.width, 0) for each in scale_shift]
    norm.load_state_dict(dict(zip(("linear.weight", "linear.bias"), scale_shift, strict=True)))
    length, tokens = prompt.embeds.shape[1], latents.shape[1]
    places = torch.cartesian_prod(*(torch.arange(float(n)) for n in inputs.grid_hw))
    own, hidden = prompt.positions, sizes.connector.hidden
    noisy, clean = (
        torch.nn.functional.pad(places, (1, 0), value=time)
        for time in (0.0, 0.0 if own is None else 1.0)
    )
    record = blocks(
        inputs.clean_latents, latents, prompt.embeds[..., :hidden], prompt.mask,
        torch.zeros(length, 3) if own is None else own, noisy, clean, sigma,
        prompt.embeds[..., hidden:] if sizes.mapping else None, keep_blocks=True,
    )  # fmt: skip
    seen = record.blocks[-1][:, length : length + tokens]
    return torch.nn.functional.linear(norm(seen, record.vector), *stored("proj_out"))


def test_both_layouts_of_klein_denoise_alike(tmp_path: Path) -> None:
    """The makers' file has the final layer under other names, and its shift first."""
    folders = make_checkpoint(tmp_path / "tiny-klein")
    single = tmp_path / "single"
    shutil.copytree(folders, single, ignore=shutil.ignore_patterns("transformer", "model_index*"))
    tensors = load_file(folders / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file(makers_transformer(tensors), single / "tiny-klein.safetensors")
    passes = []
    for folder in (folders, single):
        model = AblationModel(ModelOptions(str(folder), steps=2))
        state = model.state(picture(96, 80))
        prompt = model.prompt(state, "the red car")
        options = {"timesteps": [0, 1], "blocks": [4], "sites": ["block"]}
        passes.append(list(model.passes(state, prompt, **options)))
    for one, other in zip(*passes, strict=True):
        assert far(one.velocity, torch.from_numpy(other.velocity)) < OUTPUT
        assert far(one.features["block", 4], torch.from_numpy(other.features["block", 4])) < OUTPUT


def test_devices_and_steps_that_are_none() -> None:
    with pytest.raises(ProviderError, match="device 'gpu' cannot be used"):
        AblationModel(ModelOptions(device="gpu"))
    with pytest.raises(InputError, match="0 denoising steps were asked for"):
        AblationModel(ModelOptions(steps=0))


def test_the_command(tmp_path: Path, model: AblationModel) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "new" / "ablation"
    options = ("--timesteps", "0,1", "--blocks", "4-5", "--sites", "mmsa,block")
    found = invoke("ablate", "scenes", "--count", 2, *options, "-o", folder)
    assert (folder / "records.jsonl").read_bytes().count(b"\n") == 3
    grid = open_grid(model, Study(timesteps=[0, 1], blocks=[4, 5], sites=["mmsa", "block"]))
    assert f"2 samples, {len(grid.settings)} settings" in found.output
    page = (folder / "ablation.md").read_text()
    for name in ("table2.csv", "figure3.svg", "figure3-blocks.svg", "figure4.svg", "figure5.svg"):
        assert f"]({name})" in page and (folder / name).stat().st_size > 100
    assert "says nothing" in page or "say nothing" in page
    asked = ("ablate", "scenes", "--count", 2, "--tau", 0.7, *options, "-o", folder)
    assert "of a run with another tau" in invoke(*asked, code=1).output


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    for arguments, code, message in (
        (("--timesteps", "x"), 2, "--timesteps is 'x', expected numbers such as 0,5,10"),
        (("--sites", "mlp"), 2, "--sites is 'mlp', expected some of mmsa,adaln,block"),
        (("--timesteps", "4"), 1, "timestep 4 is not of this model, expected 0 to 3"),
        (("--model", "nothing"), 1, "no model 'nothing'"),
    ):
        asked = ("ablate", "scenes", "--count", 1, *arguments, "-o", tmp_path / "out")
        assert message in invoke(*asked, code=code).output
    assert not list(tmp_path.rglob("*.jsonl")) and not list(tmp_path.rglob("*.md"))
