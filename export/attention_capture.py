"""Capture: what the method reads off a forward pass, written once for every family.

A family's transformer calls `Capture.attend` in each block in place of its attention. Rows
are clean tokens only and heads are averaged (docs/bundle.md, METHOD: A = mean_h A_h).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from rism.export import probe as fused_probe
from rism.export.precision import PRECISIONS, Precision


@dataclass(frozen=True)
class Spans:
    """Lengths of the three parts of the sequence [prompt; noisy; clean]."""

    prompt: int
    noisy: int
    clean: int

    @property
    def clean_start(self) -> int:
        """Where the clean tokens begin."""
        return self.prompt + self.noisy


@dataclass
class Capture:
    """Collects a_l, T_l a_l or T_l, and the features of one block, during one pass.

    Attributes:
        spans: lengths of the sequence's parts.
        prompt_weights: w, (B, N_p) float32.
        feature_block: l', counted over double-stream, then single-stream blocks.
        feature_site: "mmsa" (the attention's output, heads concatenated), "adaln" (its
            modulated input) or "block" (the block's output): table 3.
        probed_blocks: their numbers, rising; None for all.
        matrices: store T_l instead of T_l a_l.
        token_attention: also collect attention to each prompt token.
        prompt_length: N_p of the model. Where fewer prompt tokens are given the last of them
            stands for those that lack: one and the same row through every block, of which only
            the keys and values are repeated. None where all are given.
        precision: of the attention and of the probes; what is collected is float32.
        written_out: write softmax out in the blocks that are probed, and read its rows: the least
            work where whole matrices of attention are kept anyway, as on a CPU.
        fused: probe by `rism.export.probe`, with the main attention's own row statistics: for
            PyTorch that runs, never for a graph to export. Vectors only.

        velocity: what a whole model predicts for the noisy tokens, (B, N_v, C) float32; the single
            step predicts nothing.

    Raises:
        ValueError: Matrices or per-token attention of a fused probe.
    """

    spans: Spans
    prompt_weights: torch.Tensor
    feature_block: int
    feature_site: str = "mmsa"
    probed_blocks: Sequence[int] | None = None
    matrices: bool = False
    token_attention: bool = False
    prompt_length: int | None = None
    precision: Precision = PRECISIONS["fp32"]
    written_out: bool = False
    fused: bool = False
    attention_vectors: list[torch.Tensor] = field(default_factory=list)
    propagated_vectors: list[torch.Tensor] = field(default_factory=list)
    transition_matrices: list[torch.Tensor] = field(default_factory=list)
    to_tokens: torch.Tensor | None = None
    features: torch.Tensor | None = None
    velocity: torch.Tensor | None = None
    # Values of the first attention: made once, or engines would make them for each block.
    _masses: torch.Tensor | None = None
    _keys: tuple[torch.Tensor, torch.Tensor] | None = None

    def __post_init__(self) -> None:
        if self.fused and (self.matrices or self.token_attention):
            raise ValueError("the fused probe gives vectors, no matrices and no tokens' attention")

    def attend(self, index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attention of block `index` over all tokens, probed on the way.

        Args:
            index: the block, in the order they run.
            q: (B, heads, N, d) after normalisation and rotary embedding.
            k: likewise.
            v: (B, heads, N, d).

        Returns:
            (B, N, heads * d), heads concatenated.
        """
        start, compute = self.spans.clean_start, self.precision.compute
        out: torch.Tensor
        if self.written_out and self.reads(index):
            out = self._attend_and_read(index, q, k, v)
        elif self.fused:
            keys, values = (self._repeated(x, dim=2).to(compute) for x in (k, v))
            found, statistics = fused_probe.attend(q.to(compute), keys, values)
            out = found.to(q.dtype)
            self.probe(index, q[:, :, start:], k, statistics[:, :, start:])
        else:
            out = self.attention(q, k, v)
            self.probe(index, q[:, :, start:], k)
            if self.reads(index):
                out = self._after_probe(out)
        self.keep("mmsa", index, out[:, start:])
        return out

    def attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """(B, heads, N, d) each to (B, N, heads * d), in the precision's type."""
        compute = self.precision.compute
        k, v = (self._repeated(x, dim=2).to(compute) for x in (k, v))
        out = F.scaled_dot_product_attention(q.to(compute), k, v)
        return _side_by_side(out).to(q.dtype)

    def probe(
        self,
        index: int,
        q_clean: torch.Tensor,
        k: torch.Tensor,
        statistics: torch.Tensor | None = None,
    ) -> None:
        """Read block `index`, if it is one of those to read, without computing its output.

        Args:
            index: of the blocks to read the next that was not probed yet.
            q_clean: (B, heads, N_v, d).
            k: (B, heads, N, d).
            statistics: (B, heads, N_v), the rows' log-sum-exp, where it is known; of use to the
                fused probe alone.
        """
        if not self.reads(index):
            return
        self._check_order(index)
        narrow = self.precision.probe
        if self.fused:
            # In the main attention's type, as the statistics are. Products are exact in float32
            # and what is summed up stays there, so nothing asks for a finer type.
            compute = self.precision.compute
            a, propagated = fused_probe.probe_vectors(
                q_clean.to(compute), self._repeated(k, dim=2).to(compute), self._weights, statistics
            )
            self.attention_vectors.append(a)
            self.propagated_vectors.append(propagated)
        elif self.matrices or self.written_out:
            keys = self._repeated(k, dim=2).to(narrow)
            self._read_rows(self._rows(q_clean.to(narrow), keys))
        else:
            self._probe_vectors(q_clean.to(narrow), k.to(narrow))

    def _check_order(self, index: int) -> None:
        done = len(self.attention_vectors)
        if index != (done if self.probed_blocks is None else self.probed_blocks[done]):
            raise ValueError(f"block {index} probed after {done} blocks")

    def reads(self, index: int) -> bool:
        """Tell whether a block is probed."""
        return self.probed_blocks is None or index in self.probed_blocks

    def keep(self, site: str, index: int, clean_tokens: torch.Tensor) -> None:
        """Offer (B, N_v, D) of one site; kept if it is the one asked for."""
        if site == self.feature_site and index == self.feature_block:
            self.features = clean_tokens.float()

    def _after_probe(self, out: torch.Tensor) -> torch.Tensor:
        """Add a zero that only the probe can tell.

        Nothing else in the graph asks for what probes give before its end, and TensorRT puts them
        off till then: with the queries and keys of every block in memory (docs/performance.md).
        """
        found = self.transition_matrices if self.matrices else self.propagated_vectors
        if not found:
            return out  # a probe that keeps nothing, as baselines of benchmarks have it
        square = found[-1].square()
        never = square.amax(dim=tuple(range(1, square.ndim)), keepdim=True).clamp_max(0)
        return out + never.reshape(-1, 1, 1).to(out.dtype)

    def _probe_vectors(self, q: torch.Tensor, k: torch.Tensor) -> None:
        # Row normalisation cancels out of the linear map T_l a_l = (A_vv a_l) / (A_vv 1), so two
        # attentions give it and no N_v x N_v matrix exists. Over clean keys alone the rows of
        # head h sum to one instead of to c_h, the mass that the first attention gives them:
        # A_vv a = mean_h c_h attention(Q_v, K_v, a), with less than half the keys.
        if self._masses is None:
            self._masses = self._for_heads(self._mass_values(q), q)
        masses = self._attend(q, self._repeated(k, dim=2), self._masses)
        a, to_clean = masses[..., 0].mean(1), masses[..., 1].mean(1)
        within = self._attend(
            q, k[:, :, self.spans.clean_start :], self._for_heads(a.unsqueeze(-1), q)
        )[..., 0]
        self.attention_vectors.append(a)
        self.propagated_vectors.append((masses[..., 1] * within).mean(1) / to_clean)
        if self.token_attention:
            self._add_tokens(masses[..., 2 : 2 + self.spans.prompt].mean(1))

    def _mass_values(self, q: torch.Tensor) -> torch.Tensor:
        """Values (B, N, c) of the first attention, the same in every block.

        Channel 0 is w on prompt tokens, 1 is one on clean tokens; the rest, if tokens are asked
        for, is one on a prompt token each.
        """
        spans, weights = self.spans, self.prompt_weights.unsqueeze(-1)
        on_prompt = [weights, torch.zeros_like(weights)]
        if self.token_attention:
            eye = torch.eye(spans.prompt, dtype=weights.dtype, device=q.device)
            on_prompt.append(eye.expand(weights.shape[0], -1, -1))
        value = torch.cat(on_prompt, dim=-1)
        noisy = value.new_zeros(weights.shape[0], spans.noisy, value.shape[-1])
        ones = torch.ones_like(q[:, 0, :, :1], dtype=weights.dtype)
        clean = F.pad(ones, (1, value.shape[-1] - 2))
        return self._repeated(torch.cat([value, noisy, clean], dim=1), dim=1)

    def _attend_and_read(
        self, index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """`attention` from the rows of all queries, those of the clean ones read on the way."""
        self._check_order(index)
        k, v = (self._repeated(x, dim=2) for x in (k, v))
        others = self._rows(q[:, :, : self.spans.clean_start], k) @ v
        rows = self._rows(q[:, :, self.spans.clean_start :], k)
        self._read_rows(rows)
        return _side_by_side(torch.cat([others, rows @ v], dim=2))

    def _rows(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """Attention of every head, (B, heads, queries, keys) float32."""
        scale = q.shape[-1] ** -0.5
        # The power of two below the scale loses nothing in 16 bits; the rest is for float32.
        power = 2.0 ** math.floor(math.log2(scale))
        scores: torch.Tensor = ((q * power) @ k.transpose(-1, -2)).float() * (scale / power)
        return scores.softmax(-1)

    def _read_rows(self, rows: torch.Tensor) -> None:
        """Equations 3 and 4 on the rows of the clean queries, (B, heads, N_v, N)."""
        weights = self._weights
        if self.written_out:
            # A product: ONNX Runtime takes twice as long for a mean over the second dimension.
            batch, heads, queries, keys = rows.shape
            mean = rows.new_full((1, 1, heads), 1 / heads) @ rows.flatten(2)
            rows = mean.reshape(batch, queries, keys)
        else:
            rows = rows.mean(1)
        to_prompt = rows[:, :, : weights.shape[1]]
        to_clean = rows[:, :, -self.spans.clean :]
        a, mass = to_prompt @ weights.unsqueeze(-1), to_clean.sum(-1, keepdim=True)
        self.attention_vectors.append(a[..., 0])
        if self.matrices:
            self.transition_matrices.append(to_clean / mass)
        else:
            self.propagated_vectors.append((to_clean @ a / mass)[..., 0])
        if self.token_attention:
            merged = self.prompt_length is not None
            self._add_tokens(to_prompt @ self._each_token(to_prompt) if merged else to_prompt)

    @property
    def _weights(self) -> torch.Tensor:
        """The weight w of every key of the prompt, (B, N_p) float32."""
        return self._repeated(self.prompt_weights, dim=1, prompt=True)

    def _each_token(self, like: torch.Tensor) -> torch.Tensor:
        """One in the column of the given token that a key of the prompt is of, (N_p, given)."""
        eye = torch.eye(self.spans.prompt, dtype=like.dtype, device=like.device)
        return self._repeated(eye, dim=0, prompt=True)

    def _repeated(self, x: torch.Tensor, dim: int, *, prompt: bool = False) -> torch.Tensor:
        """Repeat the last prompt token along a dimension of all tokens, or of the prompt's."""
        if self.prompt_length is None:
            return x
        if self._keys is None:
            # One index for all: engines must see that what goes together is of one length.
            given, device = self.spans.prompt, self.prompt_weights.device
            own = torch.arange(self.prompt_length, device=device).clamp_max(given - 1)
            image = torch.arange(self.spans.noisy + self.spans.clean, device=device) + given
            self._keys = own, torch.cat([own, image])
        return x.index_select(dim, self._keys[0 if prompt else 1])

    def _for_heads(self, value: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        """One value (B, keys, c) for all heads, in the queries' type: (B, heads, keys, >= c).

        Zeros make it as wide as the keys: fused kernels know no other. All heads share one matrix
        in memory, by a stride of 0: PyTorch's choice among its kernels asks for the last stride
        alone, and cuDNN's frontend takes a 0 for repetition from 1.5.2 on.
        """
        if self.precision.probe_scale != 1.0:
            value = value * self.precision.probe_scale
        padded = F.pad(value.to(q.dtype), (0, max(0, q.shape[-1] - value.shape[-1])))
        return padded.unsqueeze(1).expand(-1, q.shape[1], -1, -1)

    def _attend(self, q: torch.Tensor, k: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention with a value of `_for_heads`: (B, heads, N_v, its width) float32."""
        out = F.scaled_dot_product_attention(q, k, value).float()
        scale = self.precision.probe_scale
        return out if scale == 1.0 else out / scale

    def _add_tokens(self, block: torch.Tensor) -> None:
        self.to_tokens = block if self.to_tokens is None else self.to_tokens + block


def _side_by_side(heads: torch.Tensor) -> torch.Tensor:
    """Put the channels of the heads side by side: (B, heads, N, d) to (B, N, heads * d)."""
    # Not `flatten`, whose result's shape torch.onnx would have to find by decomposing it.
    batch, count, tokens, width = heads.shape
    return heads.transpose(1, 2).reshape(batch, tokens, count * width)
