"""Step1X-Edit's transformer at its first denoising step, with capture.

Runs the blocks of diffusers' Flux transformer, which are the same arithmetic, behind our own
connector. What depends on the timestep alone is constants, and the modulation, which depends on the
prompt alone, is an input (`rism.export.families.step1x.modulation`); the final norm and
projection, and everything of the last block that no captured quantity depends on, are absent.
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
from rism.export.families.step1x.connector import SINUSOIDS, Connector
from rism.export.families.step1x.modulation import (
    Step1XModulation,
    modulation_widths,
    rows_of_blocks,
    take_modulation,
)
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
    *_CONNECTOR_INTO_STREAM,
)
_THETA = 10000.0


class Step1XSingleStep(nn.Module):
    """A `SingleStepDiT`; names of its parameters are those of the diffusers layout.

    Args:
        sizes: of the model.
        family: axis rules of the three kinds of token.
        constants: "connector_time", the timestep's embedding for the connector (1, C) float32.
        precision: of the connector's attention.
    """

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
        self.family, self.sizes, self.precision = family, sizes, precision
        self.modulation_dim = sum(modulation_widths(sizes))
        width = sizes.width
        self.connector = Connector(sizes.connector, precision=precision)
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
        take_modulation([*self.transformer_blocks, *self.single_transformer_blocks])
        last = singles[-1]
        self.last_attn, self.last_norm = last.attn, last.norm.norm
        self.rotary = RotaryTable(sizes.axes_dims, _THETA)
        self.register_buffer("connector_time", constants.get("connector_time"), persistent=False)

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
        text, modulation = self._connect(prompt), self._modulation(prompt)
        image = self.x_embedder(torch.cat([noise.expand(batch, -1, -1), clean_latents], dim=1))
        rotary = self.rotary.sequence(self.family, prompt, noisy_positions, positions)
        blocks = [*self.transformer_blocks, *self.single_transformer_blocks]
        rows = rows_of_blocks(modulation, self.sizes)
        with replaced_processors(blocks, partial(BlockProcessor, capture)):
            for index, block in enumerate(self.transformer_blocks):
                text, image = block(
                    hidden_states=image,
                    encoder_hidden_states=text,
                    temb=rows[index],
                    image_rotary_emb=rotary,
                )
                capture.keep("block", index, image[:, spans.noisy :])
            hidden = torch.cat([text, image], dim=1)
            for index, block in enumerate(self.single_transformer_blocks, self.sizes.double):
                hidden = _single(block, hidden, rows[index], rotary)
                capture.keep("block", index, hidden[:, spans.clean_start :])
        self._last_block(hidden, rows[-1], rotary, capture)

    def _connect(self, prompt: PromptTokens) -> torch.Tensor:
        """Prompt tokens (B, N_p, D)."""
        assert prompt.mask is not None, "the connector takes a mask"
        hidden = prompt.embeds[..., : self.sizes.connector.hidden]
        tokens = self.connector(hidden, prompt.mask, self.connector_time)
        if self.sizes.mapping:
            quoted = prompt.embeds[..., self.sizes.connector.hidden :]
            tokens = tokens + quoted.to(tokens.dtype)
        text: torch.Tensor = self.context_embedder(tokens)
        return text

    def _modulation(self, prompt: PromptTokens) -> torch.Tensor:
        """What `Step1XModulation` made of the prompt, (B, R), in the stream's type."""
        assert prompt.modulation is not None, "this transformer takes its modulation"
        return prompt.modulation.to(self.precision.stream)

    def _last_block(
        self, hidden: torch.Tensor, rows: torch.Tensor, rotary: Rotary, capture: Capture
    ) -> None:
        shift, scale = rows.unsqueeze(1).chunk(2, dim=-1)
        normal = self.last_norm(hidden) * (1 + scale) + shift
        index = self.sizes.double + self.sizes.single - 1
        attend_last(self.last_attn, normal, rotary, capture, index)


def _single(
    block: FluxSingleTransformerBlock, hidden: torch.Tensor, rows: torch.Tensor, rotary: Rotary
) -> torch.Tensor:
    """Run a single-stream block over the whole sequence.

    The block's own forward takes the sequence in two pieces and joins them again each time.
    """
    normal, gate = block.norm(hidden, emb=rows)
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
    step = build_empty(lambda: Step1XSingleStep(whole, FAMILIES["1.0"], {}, PRECISIONS["fp32"]))
    modulation = build_empty(lambda: Step1XModulation(whole, {}))
    kept_in_part = "last_", f"single_transformer_blocks.{sizes.single}."
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in {**step.state_dict(), **modulation.state_dict()}.items()
        if not name.startswith(kept_in_part)
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
