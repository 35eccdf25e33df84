"""FLUX.2's transformer at its first denoising step, with capture.

Runs the blocks of diffusers' `Flux2Transformer2DModel` with modulation folded to constants at
one timestep; the final norm and projection, and everything of the last block that no captured
quantity depends on, are absent.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import Flux2Transformer2DModel
from diffusers.models.transformers.transformer_flux2 import (
    Flux2Modulation,
    Flux2ParallelSelfAttention,
)
from torch import nn

from rism.export.attention_capture import Capture
from rism.export.errors import UnsupportedModelError
from rism.export.families.attention_processors import (
    BlockProcessor,
    attend_last,
    heads_first,
    replaced_processors,
    split_heads,
)
from rism.export.family import FamilySpec
from rism.export.graph.rotary import Rotary, RotaryTable, rotate
from rism.export.spec import PromptTokens

MODULATIONS = (
    "double_stream_modulation_img",
    "double_stream_modulation_txt",
    "single_stream_modulation",
)
# Layers whose results are added to the residual stream, or begin it.
INTO_STREAM = (
    "x_embedder",
    "context_embedder",
    "attn.to_out",
    "attn.to_out.0",
    "attn.to_add_out",
    "ff.linear_out",
    "ff_context.linear_out",
)


class Flux2SingleStep(nn.Module):
    """A `SingleStepDiT` over diffusers' FLUX.2 transformer.

    Args:
        transformer: the model, on any device; its modules are shared, not copied.
        family: axis rules of the three kinds of token.
        modulation: the output of each modulation layer at the step's timestep, (1, k D), by its
            name in the transformer (`MODULATIONS`).
    """

    modulation_dim = 0

    def __init__(
        self,
        transformer: Flux2Transformer2DModel,
        family: FamilySpec,
        modulation: Mapping[str, torch.Tensor],
    ) -> None:
        super().__init__()
        if not transformer.single_transformer_blocks:
            raise UnsupportedModelError(
                "the transformer has no single-stream block, expected at least one: "
                "this is not a FLUX.2 layout"
            )
        self.family = family
        self.x_embedder = transformer.x_embedder
        self.context_embedder = transformer.context_embedder
        self.transformer_blocks = transformer.transformer_blocks
        self.single_transformer_blocks = transformer.single_transformer_blocks[:-1]
        last = transformer.single_transformer_blocks[-1]
        self.last_norm = last.norm
        self.last = _LastAttention(last.attn)
        self.rotary = RotaryTable(
            transformer.config.axes_dims_rope, float(transformer.config.rope_theta)
        )
        for name in MODULATIONS:
            self.register_buffer(name, modulation[name], persistent=False)

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
        batch = clean_latents.shape[0]
        image = self.x_embedder(torch.cat([noise.expand(batch, -1, -1), clean_latents], dim=1))
        text = self.context_embedder(prompt.embeds)
        rotary = self.rotary.sequence(self.family, prompt, noisy_positions, positions)
        spans = capture.spans
        doubles = len(self.transformer_blocks)

        def processor(index: int) -> BlockProcessor | _SingleProcessor:
            kind = BlockProcessor if index < doubles else _SingleProcessor
            return kind(capture, index)

        blocks = [*self.transformer_blocks, *self.single_transformer_blocks]
        with replaced_processors(blocks, processor):
            for index, block in enumerate(self.transformer_blocks):
                text, image = block(
                    hidden_states=image,
                    encoder_hidden_states=text,
                    temb_mod_img=self.double_stream_modulation_img,
                    temb_mod_txt=self.double_stream_modulation_txt,
                    image_rotary_emb=rotary,
                )
                capture.keep("block", index, image[:, spans.noisy :])
            start = len(self.transformer_blocks)
            hidden = torch.cat([text, image], dim=1)
            for index, block in enumerate(self.single_transformer_blocks, start):
                hidden = block(
                    hidden_states=hidden,
                    encoder_hidden_states=None,
                    temb_mod=self.single_stream_modulation,
                    image_rotary_emb=rotary,
                )
                capture.keep("block", index, hidden[:, spans.clean_start :])
        self._last_block(hidden, rotary, capture)

    def _last_block(self, hidden: torch.Tensor, rotary: Rotary, capture: Capture) -> None:
        shift, scale, _ = Flux2Modulation.split(self.single_stream_modulation, 1)[0]
        normal = (1 + scale) * self.last_norm(hidden) + shift
        index = len(self.transformer_blocks) + len(self.single_transformer_blocks)
        attend_last(self.last, normal, rotary, capture, index)


class _LastAttention(nn.Module):
    """Query, key and value projections of a single-stream block, cut out of its fused one.

    The fused weight's rows are those of q, k and v, in this order, then the MLP's.
    """

    def __init__(self, attn: Flux2ParallelSelfAttention) -> None:
        super().__init__()
        self.head_dim = attn.head_dim
        sizes = (attn.query_dim, attn.inner_dim)
        device = attn.to_qkv_mlp_proj.weight.device
        self.to_q, self.to_k, self.to_v = (
            nn.Linear(*sizes, bias=False, device=device) for _ in range(3)
        )
        self.norm_q, self.norm_k = attn.norm_q, attn.norm_k


class _SingleProcessor:
    """Attention of a single-stream block: one projection for q, k, v and the MLP."""

    def __init__(self, capture: Capture, index: int) -> None:
        self.capture, self.index = capture, index

    def __call__(
        self,
        attn: Flux2ParallelSelfAttention,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,  # noqa: ARG002 - diffusers passes it by place
        image_rotary_emb: Rotary,
    ) -> torch.Tensor:
        clean_start = self.capture.spans.clean_start
        self.capture.keep("adaln", self.index, hidden_states[:, clean_start:])
        fused = attn.to_qkv_mlp_proj(hidden_states)
        inner = attn.inner_dim
        q, k, v, mlp = fused.split([inner, inner, inner, fused.shape[-1] - 3 * inner], dim=-1)
        out = self.capture.attend(
            self.index,
            rotate(heads_first(attn.norm_q(split_heads(q, attn.head_dim))), image_rotary_emb),
            rotate(heads_first(attn.norm_k(split_heads(k, attn.head_dim))), image_rotary_emb),
            heads_first(split_heads(v, attn.head_dim)),
        )
        result: torch.Tensor = attn.to_out(torch.cat([out, attn.mlp_act_fn(mlp)], dim=-1))
        return result
