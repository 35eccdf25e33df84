"""The modules that are traced: flat tensors in, flat tensors out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from rism.export.attention_capture import Capture, Spans
from rism.export.errors import ExportError
from rism.export.graph.score_map import score_map
from rism.export.precision import Precision
from rism.export.spec import ModelSpec, PromptTokens


@dataclass(frozen=True)
class CaptureOptions:
    """What a transformer graph gives out.

    Attributes:
        mode: "vectors", "matrices" or "scores" (docs/bundle.md, step 5).
        feature_site: "mmsa", "adaln" or "block".
        token_attention: add the per-token attention output.
    """

    mode: str
    feature_site: str = "mmsa"
    token_attention: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        """Logical output names, in order."""
        names = {
            "vectors": ("attention_vectors", "propagated_vectors", "features"),
            "matrices": ("attention_vectors", "transition_matrices", "features"),
            "scores": ("scores", "coarse_attention", "refined_attention", "separability"),
        }[self.mode]
        return (*names, "token_attention") if self.token_attention else names


class CaptureGraph(nn.Module):
    """A family's single step with one capture mode: the module behind `transformer.<mode>`.

    Args:
        dit: the single step.
        spec: its sizes.
        options: what it gives out.
        precision: of the attention and the probes.
        written_out: see `Capture`; the form of the graph for CPUs.
        columns: of the image's tokens, where a graph has one size; None where it may be any.
        fused: probe by `rism.export.probe`; a module to run, not to export.
    """

    def __init__(
        self,
        dit: nn.Module,
        spec: ModelSpec,
        options: CaptureOptions,
        precision: Precision,
        *,
        written_out: bool = False,
        columns: int | None = None,
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.dit, self.spec, self.options, self.precision = dit, spec, options, precision
        self.written_out, self.columns, self.fused = written_out, columns, fused

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
        tau: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Inputs and outputs as in docs/bundle.md, step 5."""
        noisy_positions, rules = positions, self.spec.prompt
        if self.spec.noisy_grid > 1:
            kept = self._kept_noise(positions)
            noise, noisy_positions = noise[:, kept], positions[kept]
        spans = Spans(
            prompt=prompt_embeds.shape[1], noisy=noise.shape[1], clean=clean_latents.shape[1]
        )
        capture = Capture(
            spans=spans,
            prompt_weights=prompt_weights,
            feature_block=self.spec.feature_block,
            feature_site=self.options.feature_site,
            probed_blocks=self.spec.capture_blocks,
            matrices=self.options.mode == "matrices",
            token_attention=self.options.token_attention,
            precision=self.precision,
            prompt_length=rules.max_length if rules.shared_padding else None,
            written_out=self.written_out,
            fused=self.fused,
        )
        prompt = PromptTokens(prompt_embeds, prompt_mask, prompt_positions, modulation)
        self.dit(clean_latents, noise, prompt, noisy_positions, positions, capture)
        if capture.features is None:
            raise ExportError(
                f"block {self.spec.feature_block} gave no '{self.options.feature_site}' features, "
                f"expected a block before the last of {self.spec.blocks}"
            )
        vectors = torch.stack(capture.attention_vectors, dim=1)
        outputs: tuple[torch.Tensor, ...]
        if self.options.mode == "matrices":
            outputs = (vectors, torch.stack(capture.transition_matrices, dim=1), capture.features)
        else:
            propagated = torch.stack(capture.propagated_vectors, dim=1)
            outputs = (vectors, propagated, capture.features)
            if self.options.mode == "scores":
                assert tau is not None, "the `scores` graph takes tau"
                outputs = score_map(*outputs, tau)
        if capture.to_tokens is not None:
            outputs = (*outputs, capture.to_tokens)
        return outputs

    def _kept_noise(self, positions: torch.Tensor) -> torch.Tensor:
        """Compute `noisy_tokens` from the tokens' rows and columns: (ceil(N_v / k^2),) int64."""
        step = self.spec.noisy_grid
        count = (positions.shape[0] + step**2 - 1) // step**2
        place = torch.arange(count, device=positions.device)
        if self.columns is None:
            columns = positions[-1, 1].long() + 1
        else:
            columns = torch.full_like(place[:1], self.columns)
        wide = (columns + step - 1) // step
        return step * (place // wide) * columns + step * (place % wide)
