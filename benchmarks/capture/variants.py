"""Ways of reading the method's quantities off a forward pass, and a pass without any.

Each is a `Capture` that a family's single step calls, so blocks and weights are the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.baselines.base import VectorsCapture
from benchmarks.baselines.no_capture import NoCapture
from benchmarks.baselines.stored_attention import StoredAttention, StoredMean
from rism.export.attention_capture import Spans
from rism.export.graph.capture_graph import CaptureGraph, CaptureOptions
from rism.export.precision import Precision
from rism.export.probe import torch_form
from rism.export.spec import ModelSpec, PromptTokens

BASELINE = "no capture"


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
        q, k = q_clean.to(narrow), k.to(narrow)
        a, propagated = torch_form.probe_vectors(
            q, k, self.prompt_weights, statistics, value_scale=scale
        )
        self.attention_vectors.append(a)
        self.propagated_vectors.append(propagated)


@dataclass(frozen=True)
class Variant:
    """One thing to measure.

    Attributes:
        name: of its rows.
        capture: how; None for the module that rism exports.
        engines: that run it.
        outputs: names of what its graph gives out.
    """

    name: str
    capture: type[VectorsCapture] | None
    engines: tuple[str, ...] = ("torch", "compile", "onnxruntime")
    outputs: tuple[str, ...] = CaptureOptions("vectors").outputs


_COMPILED = ("torch", "compile")
VARIANTS = {
    each.name: each
    for each in (
        # Every block as in the others, nothing probed; of the last block queries and keys only.
        Variant(BASELINE, NoCapture, outputs=("features", "last")),
        # Softmax written out, clean rows of every head stored for each block.
        Variant("paper", StoredAttention, ("torch",)),
        # The same, of which the mean of the heads is stored.
        Variant("paper mean", StoredMean, ("torch",)),
        # As exported: two attentions more, the second over clean keys only.
        Variant("vectors", None),
        # Prompt keys, then clean keys, by the main attention's row statistics.
        Variant("fused", _Fused, _COMPILED),
        # The same without them: one pass over all keys, one over clean keys.
        Variant("fused blind", _Blind, _COMPILED),
        # As fused, in PyTorch's attention instead of rism's kernels.
        Variant("shares", _Shares, ("torch",)),
    )
}


def capturing(
    dit: nn.Module,
    spec: ModelSpec,
    variant: Variant,
    precision: Precision,
    *,
    for_cpu: bool = False,
) -> nn.Module:
    """Return the module of one variant; inputs are those of `CaptureGraph`.

    With `for_cpu` what rism exports is in its form for CPUs.
    """
    if variant.capture is None:
        options = CaptureOptions("vectors")
        return CaptureGraph(dit, spec, options, precision, written_out=for_cpu)
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
        modulation: torch.Tensor | None = None,
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
        prompt = PromptTokens(prompt_embeds, prompt_mask, prompt_positions, modulation)
        self.dit(clean_latents, noise, prompt, positions, positions, capture)
        return capture.outputs()
