"""What is compared: ways of reading the method's quantities off a forward pass, and not doing so.

Each is a `Capture` that a family's single step calls, so blocks and weights are the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.baselines.base import VectorsCapture
from benchmarks.baselines.no_capture import NoCapture
from benchmarks.baselines.stored_attention import StoredAttention, StoredMean
from rism.export.attention_capture import Spans
from rism.export.graph.capture_graph import CaptureGraph, CaptureOptions
from rism.export.precision import Precision
from rism.export.probe import torch_form
from rism.export.spec import ModelSpec, PromptTokens

__all__ = ["BASELINE", "FUSED", "VARIANTS", "VECTORS", "Variant", "capturing"]

BASELINE, VECTORS, FUSED = "no capture", "vectors", "fused"
_QUANTITIES = CaptureOptions("vectors").outputs


@dataclass
class _AllKeys(VectorsCapture):
    """`vectors` with the second attention over all keys, too: METHOD as it is first written."""

    def probe(
        self,
        index: int,
        q_clean: torch.Tensor,
        k: torch.Tensor,
        statistics: torch.Tensor | None = None,
    ) -> None:
        del index, statistics
        q, k = q_clean.to(self.precision.probe), k.to(self.precision.probe)
        weights, spans = self.prompt_weights, self.spans
        batch = weights.shape[0]
        on_prompt = F.pad(weights.unsqueeze(-1), (0, 1))
        on_noisy = weights.new_zeros(batch, spans.noisy, 2)
        on_clean = F.pad(weights.new_ones(batch, spans.clean, 1), (1, 0))
        masses = self._read(q, k, torch.cat([on_prompt, on_noisy, on_clean], dim=1))
        a, to_clean = masses.mean(1).unbind(-1)
        on_clean = F.pad(a.unsqueeze(-1), (0, 0, spans.clean_start, 0))
        spread = self._read(q, k, on_clean).mean(1)[..., 0]
        self.attention_vectors.append(a)
        self.propagated_vectors.append(spread / to_clean)

    def _read(self, q: torch.Tensor, k: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        width = value.shape[-1]
        return self._attend(q, k, self._for_heads(value, q))[..., :width]


@dataclass
class _Narrow(_AllKeys):
    """The same, with values of one or two columns and no zeros beside them."""

    def _read(self, q: torch.Tensor, k: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        scale = self.precision.probe_scale
        shared = (value * scale).to(q.dtype).unsqueeze(1).expand(-1, k.shape[1], -1, -1)
        return F.scaled_dot_product_attention(q, k, shared).float() / scale


@dataclass
class _Fused(VectorsCapture):
    """`rism.export.probe`, with the statistics of the main attention."""

    fused: bool = True


@dataclass
class _Blind(_Fused):
    """The same where the main attention keeps its statistics to itself."""

    def attend(self, index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = self.attention(q, k, v)
        self.probe(index, q[:, :, self.spans.clean_start :], k)
        self.keep("mmsa", index, out[:, self.spans.clean_start :])
        return out


@dataclass
class _Shares(_Fused):
    """The same arithmetic in PyTorch's own attention, with values as wide as a head."""

    def probe(
        self,
        index: int,
        q_clean: torch.Tensor,
        k: torch.Tensor,
        statistics: torch.Tensor | None = None,
    ) -> None:
        del index
        narrow, scale = self.precision.probe, self.precision.probe_scale
        a, propagated = torch_form.probe_vectors(
            q_clean.to(narrow),
            k.to(narrow),
            self.prompt_weights,
            statistics,
            value_scale=scale,
        )
        self.attention_vectors.append(a)
        self.propagated_vectors.append(propagated)


@dataclass(frozen=True)
class Variant:
    """One thing to measure.

    Attributes:
        what: it does, in a line.
        capture: how; None for the module that rism exports.
        outputs: names of what its graph gives out.
        engines: that run it.
    """

    what: str
    capture: type[VectorsCapture] | None
    outputs: tuple[str, ...] = _QUANTITIES
    engines: tuple[str, ...] = ("torch", "compile", "onnxruntime")


VARIANTS = {
    BASELINE: Variant(
        "every block as in the others, nothing probed; of the last block queries and keys only",
        NoCapture,
        outputs=("features", "last"),
    ),
    "paper": Variant(
        "softmax written out, clean rows of every head stored per block",
        StoredAttention,
        engines=("torch",),
    ),
    "paper mean": Variant(
        "softmax written out, the heads' mean of clean rows stored per block",
        StoredMean,
        engines=("torch",),
    ),
    VECTORS: Variant("as exported: two attentions more, the second over clean keys only", None),
    FUSED: Variant(
        "prompt keys, then clean keys, by the main attention's row statistics",
        _Fused,
        engines=("torch", "compile"),
    ),
    "fused blind": Variant(
        "the same without them: one pass over all keys, one over clean keys",
        _Blind,
        engines=("torch", "compile"),
    ),
    "shares": Variant(
        "as fused, in PyTorch's attention instead of kernels of rism's",
        _Shares,
        engines=("torch",),
    ),
    "all keys": Variant("both attentions over all keys", _AllKeys),
    "narrow": Variant("the same, values without zeros beside them", _Narrow),
}


def capturing(dit: nn.Module, spec: ModelSpec, variant: Variant, precision: Precision) -> nn.Module:
    """Return the module of one variant; inputs are those of `CaptureGraph`.

    Args:
        dit: a `SingleStepDiT`.
        spec: its sizes.
        variant: how to capture.
        precision: of the attentions.
    """
    if variant.capture is None:
        return CaptureGraph(dit, spec, CaptureOptions("vectors"), precision)
    return _StepGraph(dit, spec, variant.capture, precision)


class _StepGraph(nn.Module):
    """A single step with another capture than rism's, behind the same inputs."""

    def __init__(
        self, dit: nn.Module, spec: ModelSpec, capture: type[VectorsCapture], precision: Precision
    ) -> None:
        super().__init__()
        self.dit, self.spec, self.capture, self.precision = dit, spec, capture, precision

    def forward(
        self,
        clean_latents: torch.Tensor,
        noise: torch.Tensor,
        prompt_embeds: torch.Tensor,
        prompt_weights: torch.Tensor,
        positions: torch.Tensor,
        prompt_mask: torch.Tensor | None = None,
        prompt_positions: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Run it; what comes out is named by `Variant.outputs`."""
        spans = Spans(
            prompt=prompt_embeds.shape[1], noisy=noise.shape[1], clean=clean_latents.shape[1]
        )
        capture = self.capture(
            spans=spans,
            prompt_weights=prompt_weights,
            feature_block=self.spec.feature_block,
            precision=self.precision,
        )
        prompt = PromptTokens(prompt_embeds, prompt_mask, prompt_positions)
        self.dit(clean_latents, noise, prompt, positions, capture)
        return capture.outputs()
