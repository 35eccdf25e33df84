"""The reference of Step1X-Edit reads both layouts and computes what was published."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

import torch
from diffusers import FluxTransformer2DModel

from benchmarks.synthetic.step1x_checkpoint import write_diffusers, write_original
from benchmarks.synthetic.step1x_tensors import SMALL
from rism.export.checkpoint.safetensors_store import (
    StoredTensor,
    TensorStore,
    open_folder,
    read_headers,
)
from rism.export.families.step1x.reference import ReferenceStep1X, makers_tensors
from rism.export.families.step1x.reference_blocks import Step1XRecord, Weights, modulation
from rism.export.families.step1x.reference_connector import allowed_pairs
from rism.export.families.step1x.sizes import Step1XSizes, sizes_of
from rism.export.families.step1x.tensor_names import open_transformer
from rism.export.precision import PRECISIONS

Parts = tuple[StoredTensor, ...]
BATCH, CLEAN, PROMPT = 2, 12, 7
GRID = torch.cartesian_prod(torch.zeros(1), torch.arange(3.0), torch.arange(4.0))


@pytest.fixture(scope="module")
def makers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer's file in the makers' layout."""
    return write_original(tmp_path_factory.mktemp("step1x") / "model", SMALL, version="1.0")


@pytest.fixture(scope="module")
def original(makers: Path) -> dict[str, Parts]:
    return makers_tensors(TensorStore("transformer", read_headers(makers)))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> TensorStore:
    folder = write_diffusers(tmp_path_factory.mktemp("step1x") / "model", SMALL, version="1.2")
    return open_folder(folder / "transformer")


SIZES = SMALL.transformer(scaled=True)
MAPPING = SMALL.transformer(scaled=False, mapping=True)


def opened(tensors: dict[str, Parts], sizes: Step1XSizes = SIZES) -> ReferenceStep1X:
    return ReferenceStep1X(sizes, Weights(tensors, PRECISIONS["fp32"]))


def unscaled(tensors: dict[str, Parts]) -> dict[str, Parts]:
    return {name: parts for name, parts in tensors.items() if name != "connector.scale_factor"}


def inputs(**changes: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    given = {
        "clean_latents": normal(BATCH, CLEAN, SMALL.channels),
        "noise": normal(1, CLEAN, SMALL.channels),
        "prompt_embeds": normal(BATCH, PROMPT, SMALL.text_width),
        "prompt_mask": torch.tensor([[1] * PROMPT, [1] * 4 + [0] * 3]),
        "prompt_positions": normal(PROMPT, 3) * 5,
        "noisy_positions": GRID,
        "clean_positions": GRID + 1,
    }
    return given | changes


@torch.no_grad()
def run(model: ReferenceStep1X, given: dict[str, Any], **options: Any) -> Step1XRecord:
    return model(**given, timestep=1.0, keep_blocks=True, **options)


def test_sizes_are_read_off_shapes(makers: Path, converted: TensorStore) -> None:
    heads = {"connector_heads_num": SMALL.connector_heads}
    assert sizes_of(open_transformer(makers, read_headers(makers)), heads) == SIZES
    assert sizes_of(converted, heads) == MAPPING
    assert SIZES.axes_dims == SMALL.axes


def test_both_layouts_are_the_same_model(
    original: dict[str, Parts], converted: TensorStore
) -> None:
    given = inputs()
    plain = run(opened(unscaled(original)), given)
    stacked = run(opened(makers_tensors(converted), MAPPING), given)
    assert len(plain.blocks) == SMALL.double + SMALL.single
    torch.testing.assert_close(plain.blocks, stacked.blocks, rtol=0, atol=2e-6)


def test_every_block_is_one_of_flux_1(converted: TensorStore) -> None:
    """The blocks are FLUX.1's, of which diffusers has its own implementation."""
    given = inputs()
    record = run(opened(makers_tensors(converted), MAPPING), given)
    flux = FluxTransformer2DModel(
        in_channels=SMALL.channels,
        num_layers=SMALL.double,
        num_single_layers=SMALL.single,
        attention_head_dim=SMALL.head_dim,
        num_attention_heads=SMALL.heads,
        joint_attention_dim=SMALL.connector,
        pooled_projection_dim=SMALL.pooled,
        axes_dims_rope=SMALL.axes,
    ).eval()
    renamed = {"time_embed": "timestep_embedder", "vec_embed": "text_embedder"}
    weights = {}
    for name, stored in converted.items():
        part, _, rest = name.partition(".")
        if part in renamed:
            layer = rest.replace("in_layer", "linear_1").replace("out_layer", "linear_2")
            name = f"time_text_embed.{renamed[part]}.{layer}"
        if part not in ("connector", "text_token_mapping"):
            weights[name] = stored.read().float()
    flux.load_state_dict(weights)
    theirs: list[torch.Tensor] = []
    for block in [*flux.transformer_blocks, *flux.single_transformer_blocks]:
        block.register_forward_hook(lambda _m, _a, out: theirs.append(torch.cat(out, dim=1)))
    with torch.no_grad():
        noise = given["noise"].expand(BATCH, -1, -1)
        flux(
            hidden_states=torch.cat([noise, given["clean_latents"]], dim=1),
            encoder_hidden_states=record.tokens,
            pooled_projections=record.pooled,
            timestep=torch.ones(BATCH),
            img_ids=torch.cat([given["noisy_positions"], given["clean_positions"]]),
            txt_ids=given["prompt_positions"],
        )
    torch.testing.assert_close(record.blocks, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("block", [1, 2])
def test_features_are_those_of_the_block(original: dict[str, Parts], block: int) -> None:
    """l' counts double blocks, then single ones; block l' reads what l' - 1 left."""
    model, given = opened(original), inputs()
    record = run(model, given, feature_block=block)
    before = record.blocks[block - 1][:, -CLEAN:]
    normal = torch.nn.functional.layer_norm(before, before.shape[-1:], eps=1e-6)
    assert record.vector is not None
    name, parts = f"double_blocks.{block}.img_mod", 6
    if block >= SMALL.double:
        name, parts = f"single_blocks.{block - SMALL.double}.modulation", 3
    shift, scale, *_ = modulation(model.weights.under(name), record.vector, parts)
    torch.testing.assert_close(record.features["adaln"], normal * (1 + scale) + shift)


def test_padding_reaches_no_real_token(original: dict[str, Parts]) -> None:
    model, given = opened(original), inputs()
    before = run(model, given)
    changed = given["prompt_embeds"].clone()
    changed[1, 4:] += 1
    after = run(model, given | {"prompt_embeds": changed})
    assert before.tokens is not None and after.tokens is not None
    torch.testing.assert_close(before.pooled, after.pooled)
    torch.testing.assert_close(before.tokens[1, :4], after.tokens[1, :4])
    assert (before.tokens[1, 4:] - after.tokens[1, 4:]).abs().max() > 0.1
    assert allowed_pairs(torch.tensor([[1, 1, 0]])).tolist() == [
        [[True, True, False], [True, True, False], [True, False, False]]
    ]


def test_only_the_first_version_scales_the_mean(original: dict[str, Parts]) -> None:
    given = inputs(prompt_embeds=torch.ones(BATCH, PROMPT, SMALL.text_width))
    weight = original["connector.global_proj_out.weight"][0].read().float().sum(1)
    bias = original["connector.global_proj_out.bias"][0].read().float()
    factor = original["connector.scale_factor"][0].read().float()
    for scaled, mean in ((True, 1 + factor), (False, 1)):
        pooled = run(opened(original if scaled else unscaled(original)), given).pooled
        torch.testing.assert_close(pooled, (weight * mean + bias).expand(BATCH, -1))
