"""Qwen2.5-VL's two halves as the graphs hold them: the tower that looks, the model that reads."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLTextModel,
    Qwen2_5_VLVisionBlock,
)

from rism.export.graph.encoders import register_attention
from rism.export.precision import Precision


class QwenVisionEncoder(nn.Module):
    """The vision tower up to what takes the place of the image tokens.

    Blocks with windows attend under a mask. The published code sorts the patches by window
    instead, and sorts the result back; attention does not depend on the order.

    Args:
        visual: the tower; modules are shared, not copied.
        precision: of the products.
    """

    frequencies: torch.Tensor

    def __init__(
        self, visual: Qwen2_5_VisionTransformerPretrainedModel, precision: Precision
    ) -> None:
        super().__init__()
        kernel = visual.patch_embed.proj
        values = kernel.weight[0].numel()
        device = kernel.weight.device
        self.patch_embed = nn.Linear(values, kernel.out_channels, bias=False, device=device)
        self.blocks, self.merger = visual.blocks, visual.merger
        self.whole = frozenset(visual.fullatt_block_indexes)
        self.window = visual.window_size // visual.patch_size
        self.precision = precision
        self.register_buffer("frequencies", visual.rotary_pos_emb.inv_freq, persistent=False)

    def forward(self, pixel_values: torch.Tensor, patch_positions: torch.Tensor) -> torch.Tensor:
        """(P, 3 * frames * patch_px ** 2) float32 and (P, 2) int64 rows and columns to (V, E).

        Patches come in blocks of merge x merge, see `vision_patches.pixel_values`.
        """
        hidden = self.patch_embed(pixel_values)
        angles = (patch_positions.float().unsqueeze(-1) * self.frequencies).flatten(1)
        turn = (angles.cos().repeat(1, 2), angles.sin().repeat(1, 2))
        windows = patch_positions // self.window
        together = (windows.unsqueeze(0) == windows.unsqueeze(1)).all(-1)
        for index, block in enumerate(self.blocks):
            mask = None if index in self.whole else together
            hidden = hidden + self._attend(block, block.norm1(hidden), turn, mask)
            hidden = hidden + block.mlp(block.norm2(hidden))
        merged: torch.Tensor = self.merger(hidden)
        return merged.float()

    def _attend(
        self,
        block: Qwen2_5_VLVisionBlock,
        x: torch.Tensor,
        turn: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        attn, compute = block.attn, self.precision.compute
        qkv = attn.qkv(x).reshape(x.shape[0], 3, attn.num_heads, -1)
        q, k, v = (part.transpose(0, 1).unsqueeze(0) for part in qkv.unbind(1))
        q, k = (_rotate_half(part, turn).to(compute) for part in (q, k))
        out = F.scaled_dot_product_attention(q, k, v.to(compute), attn_mask=mask)
        result: torch.Tensor = attn.proj(out[0].transpose(0, 1).flatten(1).to(x.dtype))
        return result


def _rotate_half(x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turn the pairs (i, i + d / 2) of (1, heads, P, d), in float32."""
    cos, sin = turn
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first, second], -1) * cos + torch.cat([-second, first], -1) * sin


class QwenVlPromptEncoder(nn.Module):
    """The language model up to its last hidden state, images put in the place of their tokens.

    Args:
        model: the language model; modules are shared, not copied.
        image_token_id: the token that stands for a merged patch.
        drop: tokens at the beginning that are read and not given out.
        flash: masked tokens do not attend, either: flash attention leaves them out, and gives
            zeros in their places.
        precision: of the products and of what flows between the blocks.
        prefix: tokens at the beginning that are the same in every prompt, at most `drop`: their
            keys and values, all that later tokens ask of them, are constants.
        mapping: where the transformer also gets the embeddings of quoted tokens: what is applied
            to them first. They are given out beside the hidden state.
    """

    frequencies: torch.Tensor

    def __init__(
        self,
        model: Qwen2_5_VLTextModel,
        *,
        image_token_id: int,
        drop: int,
        flash: bool,
        precision: Precision,
        prefix: int = 0,
        mapping: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.image_token_id, self.drop, self.flash = image_token_id, drop, flash
        config = model.config
        head_dim = config.hidden_size // config.num_attention_heads
        self.prefix = ConstantPrefix(
            len(model.layers), (config.num_key_value_heads, prefix, head_dim)
        )
        self.embed_tokens, self.layers, self.norm = model.embed_tokens, model.layers, model.norm
        self.mapping = mapping
        self.register_buffer("frequencies", model.rotary_emb.inv_freq, persistent=False)
        # Multimodal rotary embedding: runs of pairs turn by time, row and column in turn.
        sections = model.rotary_emb.mrope_section
        self.axis_of_pair = [axis % 3 for axis, count in enumerate(sections) for _ in range(count)]
        for layer in self.layers:
            layer.self_attn.config._attn_implementation = register_attention(precision)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        image_embeds: torch.Tensor,
        quoted_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, S) ids and masks, (3, B, S) positions, (V, E) to (B, S - drop, W) float32."""
        start = self.prefix.length
        input_ids = input_ids[:, start:]
        # Of the lengths that keys have, one by one: engines compare how sizes are computed.
        own = torch.arange(input_ids.shape[1], device=input_ids.device) + start
        index = torch.cat([torch.arange(start, device=input_ids.device), own])
        seen_keys = attention_mask.index_select(1, index)[:, None, None].bool()
        allowed = (index <= own[:, None]) & seen_keys
        attention_mask = attention_mask[:, start:]
        words = self.embed_tokens(input_ids)
        seen = input_ids == self.image_token_id
        place = (seen.long().cumsum(1) - 1).clamp(0)
        words = torch.where(seen.unsqueeze(-1), image_embeds.to(words.dtype)[place], words)
        angles = (
            torch.stack([position_ids[axis, :, start:].float() for axis in self.axis_of_pair], -1)
            * self.frequencies
        )
        turn = (torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin())
        hidden = words
        for layer in self.layers:
            read, _ = layer.self_attn(
                layer.input_layernorm(hidden),
                attention_mask=allowed,
                position_embeddings=turn,
                past_key_values=self.prefix,
            )
            if self.flash:
                read = read * attention_mask.unsqueeze(-1).to(read.dtype)
            hidden = hidden + read
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        drop = self.drop - start
        kept: torch.Tensor = self.norm(hidden)[:, drop:].float()
        if self.mapping is None or quoted_mask is None:
            return kept
        quoted = self.mapping(words[:, drop:]).float()
        return torch.cat([kept, quoted * quoted_mask[:, self.drop :, None].float()], -1)


class ConstantPrefix(nn.Module):
    """Keys and values of a prompt's first tokens, as transformers' attention asks a cache for them.

    Buffers `keys_L` and `values_L` are (heads, P, d) float32, keys turned by their positions.
    """

    def __init__(self, layers: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.length = shape[1]
        for layer in range(layers if self.length else 0):
            for kind in ("keys", "values"):
                self.register_buffer(f"{kind}_{layer}", torch.empty(shape, device="meta"))

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put a layer's constants before the keys and values (B, heads, N, d) of other tokens."""
        if not self.length:
            return keys, values
        own = ((f"keys_{layer}", keys), (f"values_{layer}", values))
        first, second = (_behind(self.get_buffer(name), each) for name, each in own)
        return first, second


def _behind(constant: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    return torch.cat([constant.expand(own.shape[0], -1, -1, -1).to(own.dtype), own], dim=2)
