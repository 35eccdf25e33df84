"""The reference of Step1X-Edit reads both layouts and computes what was published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file

from benchmarks.synthetic.step1x_checkpoint import write_diffusers, write_original
from benchmarks.synthetic.step1x_tensors import SMALL
from rism.export.checkpoint.safetensors_store import (
    AnyStored,
    StackedTensor,
    StoredTensor,
    TensorStore,
    open_folder,
    read_headers,
)
from rism.export.errors import CheckpointError
from rism.export.families.step1x.names import NAMES, open_transformer
from rism.export.families.step1x.reference import (
    ReferenceStep1X,
    Step1XRecord,
    makers_tensors,
    open_reference,
)
from rism.export.families.step1x.reference_blocks import rotary_turns
from rism.export.families.step1x.reference_connector import allowed_pairs, sinusoid
from rism.export.families.step1x.sizes import ConnectorSizes, Step1XSizes, sizes_of
from rism.export.precision import PRECISIONS

BATCH, CLEAN, PROMPT = 2, 12, 7
GRID = torch.cartesian_prod(torch.zeros(1), torch.arange(3.0), torch.arange(4.0))


@pytest.fixture(scope="module")
def makers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer's file in the makers' layout."""
    return write_original(tmp_path_factory.mktemp("step1x") / "model", SMALL, version="1.0")


@pytest.fixture(scope="module")
def original(makers: Path) -> dict[str, AnyStored]:
    return makers_tensors(TensorStore("transformer", read_headers(makers)))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> TensorStore:
    folder = write_diffusers(tmp_path_factory.mktemp("step1x") / "model", SMALL, version="1.2")
    return open_folder(folder / "transformer")


SIZES = Step1XSizes(
    in_channels=SMALL.channels,
    heads=SMALL.heads,
    head_dim=SMALL.head_dim,
    double=SMALL.double,
    single=SMALL.single,
    context=SMALL.connector,
    connector=ConnectorSizes(
        hidden=SMALL.text_width,
        width=SMALL.connector,
        pooled=SMALL.pooled,
        heads=SMALL.connector_heads,
        depth=SMALL.connector_depth,
    ),
    scaled=True,
    mapping=0,
)
MAPPING = replace(SIZES, scaled=False, mapping=SMALL.connector)


def opened(tensors: dict[str, AnyStored], sizes: Step1XSizes = SIZES) -> ReferenceStep1X:
    return open_reference(sizes, tensors, PRECISIONS["fp32"])


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
    record: Step1XRecord = model(**given, timestep=1.0, keep_blocks=True, **options)
    return record


def test_sizes_are_read_off_shapes(makers: Path, converted: TensorStore) -> None:
    heads = {"connector_heads_num": SMALL.connector_heads}
    assert sizes_of(open_transformer(makers, read_headers(makers)), heads) == SIZES
    assert sizes_of(converted, heads) == MAPPING
    assert SIZES.axes_dims == SMALL.axes


def test_both_layouts_are_the_same_model(
    original: dict[str, AnyStored], converted: TensorStore
) -> None:
    given = inputs()
    plain = run(opened(original, replace(SIZES, scaled=False)), given)
    stacked = run(opened(makers_tensors(converted), MAPPING), given)
    assert len(plain.blocks) == SMALL.double + SMALL.single
    for one, other in zip(plain.blocks, stacked.blocks, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


def test_names_cover_a_checkpoint(converted: TensorStore) -> None:
    names = NAMES.makers_names(converted)
    used = {old for parts in names.values() for old in parts}
    assert used == set(converted)
    assert names["double_blocks.1.txt_attn.qkv.bias"] == (
        "transformer_blocks.1.attn.add_q_proj.bias",
        "transformer_blocks.1.attn.add_k_proj.bias",
        "transformer_blocks.1.attn.add_v_proj.bias",
    )


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
    for ours, other in zip(record.blocks, theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-5)


def test_what_is_captured(original: dict[str, AnyStored]) -> None:
    model, given = opened(original), inputs()
    weights = torch.rand(BATCH, PROMPT, generator=torch.Generator().manual_seed(1))
    record = run(model, given, feature_block=3)
    found = record.capture(weights)
    blocks = SMALL.double + SMALL.single
    ones = torch.ones(BATCH, blocks, CLEAN)
    torch.testing.assert_close(found.transition_matrices.sum(-1), ones)
    assert found.token_attention.shape == (BATCH, CLEAN, PROMPT)
    summed = (found.token_attention * weights[:, None]).sum(-1)
    torch.testing.assert_close(found.attention_vectors.sum(1), summed)
    to_all = record.to_prompt[0].sum(-1) + record.to_clean[0].sum(-1)
    assert (to_all < 1).all() and (to_all > 0.2).all()  # the rest goes to the noisy tokens
    torch.testing.assert_close(found.features["block"], record.blocks[3][:, -CLEAN:])
    assert found.features["mmsa"].shape == (BATCH, CLEAN, SMALL.width)
    # Shift and scale are the same for all tokens, so what is left of them varies between tokens.
    assert found.features["adaln"].std(1).mean() > 0.5


@pytest.mark.parametrize("block", [1, 2])
def test_features_are_those_of_the_block(original: dict[str, AnyStored], block: int) -> None:
    """l' counts double blocks, then single ones; block l' reads what l' - 1 left."""
    model, given = opened(original), inputs()
    record = run(model, given, feature_block=block)
    before = record.blocks[block - 1][:, -CLEAN:]
    normal = torch.nn.functional.layer_norm(before, before.shape[-1:], eps=1e-6)
    modulation = (
        model.double_blocks[block].img_mod
        if block < SMALL.double
        else model.single_blocks[block - SMALL.double].modulation
    )
    shift, scale, *_ = modulation(record.vector)
    torch.testing.assert_close(record.features["adaln"], normal * (1 + scale) + shift)


def test_padding_reaches_no_real_token(original: dict[str, AnyStored]) -> None:
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


def test_only_the_first_version_scales_the_mean(original: dict[str, AnyStored]) -> None:
    given = inputs(prompt_embeds=torch.ones(BATCH, PROMPT, SMALL.text_width))
    weight = original["connector.global_proj_out.weight"].read().float().sum(1)
    bias = original["connector.global_proj_out.bias"].read().float()
    factor = original["connector.scale_factor"].read().float()
    for scaled, mean in ((True, 1 + factor), (False, 1)):
        pooled = run(opened(original, replace(SIZES, scaled=scaled)), given).pooled
        torch.testing.assert_close(pooled, (weight * mean + bias).expand(BATCH, -1))


def test_quoted_tokens_are_added(converted: TensorStore) -> None:
    model, given = opened(makers_tensors(converted), MAPPING), inputs()
    assert model.sizes.mapping
    embeds = torch.randn(BATCH, PROMPT, SMALL.text_width)
    quoted = torch.zeros(BATCH, PROMPT, dtype=torch.int64)
    without = run(model, given)
    assert torch.equal(run(model, given, extra=model.map_quoted(embeds, quoted)).blocks[-1],
                       without.blocks[-1])  # fmt: skip
    quoted[0, 2] = 1
    extra = model.map_quoted(embeds, quoted).detach()
    assert extra[0, 2].abs().min() > 0 and extra[1].abs().max() == 0
    changed = run(model, given, extra=extra).blocks[-1] != without.blocks[-1]
    assert changed[0].any() and not changed[1].any()


def test_embeddings_of_time_and_place() -> None:
    first = sinusoid(1000.0)[0]
    assert first.shape == (256,)
    expected = torch.tensor([1000.0]).cos().item(), torch.tensor([1000.0]).sin().item()
    assert (first[0].item(), first[128].item()) == pytest.approx(expected, abs=1e-6)
    turns = rotary_turns(torch.tensor([[0.0, 0.0, 0.0], [2.0, 3.0, -0.5]]), SMALL.axes)
    assert turns.shape == (2, SMALL.head_dim // 2)
    assert torch.equal(turns[0], torch.ones(16, dtype=torch.complex64))
    # The first pair of each axis turns by the position itself, the second of time by a hundredth.
    angles = turns[1].angle()
    assert angles[[0, 1, 2, 9]].tolist() == pytest.approx([2.0, 0.02, 3.0, -0.5], abs=1e-6)


def test_tensors_stacked_of_several(original: dict[str, AnyStored]) -> None:
    names = ("double_blocks.0.img_attn.proj.weight", "double_blocks.0.img_mlp.0.weight")
    parts = [original[name] for name in names]
    assert all(isinstance(part, StoredTensor) for part in parts)
    stacked = StackedTensor(tuple(parts))  # type: ignore[arg-type]
    whole = torch.cat([part.read() for part in parts])
    assert stacked.shape == tuple(whole.shape) == (480, 96)
    assert stacked.nbytes == whole.nbytes
    assert torch.equal(stacked.read(), whole)
    assert torch.equal(stacked.rows(90, 200).read(), whole[90:200])
    assert torch.equal(stacked.rows(100, 120).rows(5, 7).read(), whole[105:107])
    assert max(len(chunk) for chunk in stacked.chunks(96 * 2 * 50)) == 50
    narrow = original["img_in.weight"]
    with pytest.raises(CheckpointError, match="differ in type or width"):
        StackedTensor((parts[0], narrow))  # type: ignore[arg-type]


def test_weights_are_rounded_but_for_the_exact(tmp_path: Path, converted: TensorStore) -> None:
    key, tensors = "time_in.in_layer.weight", makers_tensors(converted)
    weight = torch.randn(SMALL.width, 256)
    save_file({key: weight}, tmp_path / "wide.safetensors")
    tensors |= read_headers(tmp_path / "wide.safetensors")
    x = torch.randn(1, 256)
    for exact, used in (((), weight.bfloat16().float()), (("time_in.",), weight)):
        layer = open_reference(MAPPING, tensors, PRECISIONS["bf16"], exact=exact).time_in.in_layer
        torch.testing.assert_close(layer(x), x @ used.T + layer.bias)
