"""Step1X-Edit's transformer at its first denoising step, with capture.

Runs the blocks of diffusers' Flux transformer, which are the same arithmetic, behind our own
connector. What depends on the timestep alone is constants; the final norm and projection, and
everything of the last block that no captured quantity depends on, are absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from diffusers.models.transformers.transformer_flux import (
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from torch import nn
from torch.nn import functional as F

from rism.export.attention_capture import Capture
from rism.export.checkpoint.meta_modules import build_empty
from rism.export.errors import UnsupportedModelError
from rism.export.families.attention_processors import (
    BlockProcessor,
    attend_last,
    replaced_processors,
)
from rism.export.families.step1x import FAMILIES
from rism.export.families.step1x.connector import INTO_STREAM as _CONNECTOR_INTO_STREAM
from rism.export.families.step1x.connector import SINUSOIDS, Connector, two_layers
from rism.export.families.step1x.sizes import Step1XSizes
from rism.export.family import FamilySpec
from rism.export.graph.rotary import Rotary, RotaryTable
from rism.export.precision import PRECISIONS, Precision
from rism.export.spec import PromptTokens

# Layers whose results are added to the residual stream, begin it, or multiply into it.
INTO_STREAM = (
    "x_embedder",
    "context_embedder",
    "attn.to_out.0",
    "attn.to_add_out",
    "ff.net.2",
    "ff_context.net.2",
    "proj_out",
    "norm.linear",
    "norm1.linear",
    "norm1_context.linear",
    "last_modulation",
    *_CONNECTOR_INTO_STREAM,
)
_THETA = 10000.0


class Step1XSingleStep(nn.Module):
    """A `SingleStepDiT`; names of its parameters are those of the diffusers layout.

    Args:
        sizes: of the model.
        family: axis rules of the three kinds of token.
        constants: "time", the timestep's part of the modulation's input (1, D), and
            "connector_time" (1, C), float32.
        precision: of the connector's attention.
    """

    time: torch.Tensor
    connector_time: torch.Tensor

    def __init__(
        self,
        sizes: Step1XSizes,
        family: FamilySpec,
        constants: Mapping[str, torch.Tensor],
        precision: Precision,
    ) -> None:
        super().__init__()
        if sizes.single < 1:
            raise UnsupportedModelError(
                "the transformer has no single-stream block, expected at least one: "
                "this is not a Step1X-Edit layout"
            )
        self.family, self.sizes = family, sizes
        width = sizes.width
        self.connector = Connector(sizes.connector, scaled=sizes.scaled, precision=precision)
        self.vec_embed = two_layers("in_layer", "out_layer", sizes.connector.pooled, width, width)
        self.x_embedder = nn.Linear(sizes.in_channels, width)
        self.context_embedder = nn.Linear(sizes.context, width)
        self.transformer_blocks = nn.ModuleList(
            FluxTransformerBlock(width, sizes.heads, sizes.head_dim) for _ in range(sizes.double)
        )
        singles = [
            FluxSingleTransformerBlock(width, sizes.heads, sizes.head_dim)
            for _ in range(sizes.single)
        ]
        self.single_transformer_blocks = nn.ModuleList(singles[:-1])
        last = singles[-1]
        self.last_attn, self.last_norm = last.attn, last.norm.norm
        self.last_modulation = nn.Linear(width, 2 * width)
        self.rotary = RotaryTable(sizes.axes_dims, _THETA)
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def forward(
        self,
        clean_latents: torch.Tensor,
        noise: torch.Tensor,
        prompt: PromptTokens,
        noisy_positions: torch.Tensor,
        positions: torch.Tensor,
        capture: Capture,
    ) -> None:
        """Run the step; see `rism.export.spec.SingleStepDiT`."""
        batch, spans = clean_latents.shape[0], capture.spans
        text, condition = self._connect(prompt)
        image = self.x_embedder(torch.cat([noise.expand(batch, -1, -1), clean_latents], dim=1))
        rotary = self.rotary.sequence(self.family, prompt, noisy_positions, positions)
        blocks = [*self.transformer_blocks, *self.single_transformer_blocks]
        with replaced_processors(blocks, partial(BlockProcessor, capture)):
            for index, block in enumerate(self.transformer_blocks):
                text, image = block(
                    hidden_states=image,
                    encoder_hidden_states=text,
                    temb=condition,
                    image_rotary_emb=rotary,
                )
                capture.keep("block", index, image[:, spans.noisy :])
            hidden = torch.cat([text, image], dim=1)
            for index, block in enumerate(self.single_transformer_blocks, self.sizes.double):
                hidden = _single(block, hidden, condition, rotary)
                capture.keep("block", index, hidden[:, spans.clean_start :])
        self._last_block(hidden, condition, rotary, capture)

    def _connect(self, prompt: PromptTokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompt tokens (B, N_p, D), and what sets every block's modulation (B, D)."""
        assert prompt.mask is not None, "the connector takes a mask"
        hidden = prompt.embeds[..., : self.sizes.connector.hidden]
        tokens, pooled = self.connector(hidden, prompt.mask, self.connector_time)
        if self.sizes.mapping:
            quoted = prompt.embeds[..., self.sizes.connector.hidden :]
            tokens = tokens + quoted.to(tokens.dtype)
        return self.context_embedder(tokens), self.time + self.vec_embed(pooled)

    def _last_block(
        self, hidden: torch.Tensor, condition: torch.Tensor, rotary: Rotary, capture: Capture
    ) -> None:
        shift, scale = self.last_modulation(F.silu(condition)).unsqueeze(1).chunk(2, dim=-1)
        normal = self.last_norm(hidden) * (1 + scale) + shift
        index = self.sizes.double + self.sizes.single - 1
        attend_last(self.last_attn, normal, rotary, capture, index)


def _single(
    block: FluxSingleTransformerBlock, hidden: torch.Tensor, condition: torch.Tensor, rotary: Rotary
) -> torch.Tensor:
    """Run a single-stream block over the whole sequence.

    The block's own forward takes the sequence in two pieces and joins them again each time.
    """
    normal, gate = block.norm(hidden, emb=condition)
    attended = block.attn(hidden_states=normal, image_rotary_emb=rotary)
    fed = block.act_mlp(block.proj_mlp(normal))
    out = block.proj_out(torch.cat([attended, fed], dim=-1))
    result: torch.Tensor = hidden + gate.unsqueeze(1) * out
    return result


def expected_shapes(sizes: Step1XSizes) -> dict[str, tuple[int, ...]]:
    """Every tensor of a transformer of these sizes, under the names of the diffusers layout."""
    width, inner = sizes.width, sizes.connector.width
    # With one block more, because the single step keeps only a part of its last one.
    whole = replace(sizes, single=sizes.single + 1)
    module = build_empty(lambda: Step1XSingleStep(whole, FAMILIES["1.0"], {}, PRECISIONS["fp32"]))
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in module.state_dict().items()
        if not name.startswith("last_")
    }
    linears = {
        "time_embed.in_layer": (width, SINUSOIDS),
        "time_embed.out_layer": (width, width),
        "connector.S.t_embedder.mlp.0": (inner, SINUSOIDS),
        "connector.S.t_embedder.mlp.2": (inner, inner),
        "norm_out.linear": (2 * width, width),
        "proj_out": (sizes.in_channels, width),
    }
    if sizes.mapping:
        linears["text_token_mapping"] = (sizes.mapping, sizes.connector.hidden)
    for name, (rows, columns) in linears.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (rows, columns), (rows,)
    return shapes
