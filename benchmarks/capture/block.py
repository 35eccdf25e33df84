"""One block's probe, beside the attention that it reads.

Queries and keys of random numbers in the shapes of both models: the main attention as PyTorch
runs it (the baseline), the same with its rows' log-sum-exp, and every way of reading a_l and
T_l a_l: the two attentions that are exported, the same arithmetic with statistics in PyTorch's
attention, and the Triton kernels with and without statistics, for all prompt tokens and for a few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.harness.errors import reason
from benchmarks.harness.measure import Timing
from benchmarks.rooflines.gpus import GPUS
from benchmarks.rooflines.probe_bounds import SHAPES, ProbeShape, cost, floor_s
from rism.export.attention_capture import Capture, Spans
from rism.export.precision import PRECISIONS
from rism.export.probe import attend, probe_vectors, torch_form

BASELINE = "main attention"
SMALL = ProbeShape(heads=2, dim=32, prompt=16, clean=48, blocks=3, flop=0.0)
_FEW = 16
Vectors = tuple[torch.Tensor, torch.Tensor]


class ProbeBlock:
    """One block's queries, keys and values on "cuda" or "cpu", and every way of probing it."""

    def __init__(self, shape: ProbeShape, device: str) -> None:
        self.shape = shape
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        generator = torch.Generator(device).manual_seed(0)

        def normal() -> torch.Tensor:
            # As projections leave them: tokens before heads.
            size = 1, shape.keys, shape.heads, shape.dim
            drawn = torch.randn(size, generator=generator, device=device)
            return drawn.to(dtype).transpose(1, 2)

        self.q, self.k, self.v = normal(), normal(), normal()
        self.clean = self.q[:, :, shape.keys - shape.clean :]
        self.all = torch.ones(1, shape.prompt, device=device)
        self.few = torch.zeros_like(self.all)
        self.few[:, 4 : 4 + _FEW] = 1.0
        self.rows = attend(self.q, self.k, self.v)[1][:, :, shape.keys - shape.clean :]
        self.precision = PRECISIONS["bf16" if device == "cuda" else "fp32"]

    def exported(self) -> Vectors:
        """Two attentions, as `Capture` puts them into a graph."""
        shape = self.shape
        spans = Spans(prompt=shape.prompt, noisy=shape.clean, clean=shape.clean)
        capture = Capture(spans, self.all, 0, precision=self.precision)
        capture.probe(0, self.clean, self.k)
        return capture.attention_vectors[0], capture.propagated_vectors[0]

    def shares(self) -> Vectors:
        """With statistics, in PyTorch's attention."""
        narrow, scale = self.precision.probe, self.precision.probe_scale
        q, k = self.clean.to(narrow), self.k.to(narrow)
        return torch_form.probe_vectors(q, k, self.all, self.rows, value_scale=scale)

    def fused(self, weights: torch.Tensor, statistics: torch.Tensor | None) -> Vectors:
        """By the operator."""
        a, propagated = probe_vectors(self.clean, self.k, weights, statistics)
        return a, propagated

    def ways(self) -> dict[str, tuple[Callable[[], Vectors], torch.Tensor]]:
        """Return each way, and the weights that it was given."""
        return {
            "vectors": (self.exported, self.all),
            "shares": (self.shares, self.all),
            "fused blind": (lambda: self.fused(self.all, None), self.all),
            "fused": (lambda: self.fused(self.all, self.rows), self.all),
            f"fused, {_FEW} weights": (lambda: self.fused(self.few, self.rows), self.few),
        }

    def reference(self, weights: torch.Tensor) -> Vectors:
        """Equations 1, 3 and 4 in float64, head by head."""
        shape = self.shape
        rows = torch.zeros(shape.clean, shape.keys, dtype=torch.float64, device=self.q.device)
        for head in range(shape.heads):
            q, k = self.clean[0, head].double(), self.k[0, head].double()
            rows += (q @ k.T * shape.dim**-0.5).softmax(-1) / shape.heads
        a = rows[:, : shape.prompt] @ weights[0].double()
        to_clean = rows[:, shape.keys - shape.clean :]
        return a[None], (to_clean @ a / to_clean.sum(-1))[None]


def compare_ways(
    case: str, device: str, clock: Callable[[Callable[[], object]], Timing], gpu: str | None = None
) -> Iterator[tuple[str, Timing | None, dict[str, Any]]]:
    """Time every way of one case, and give each out as soon as it is known.

    Args:
        case: of `SHAPES`, or any other name for small shapes.
        device: "cuda" or "cpu".
        clock: times a function.
        gpu: whose lower bounds to give, of `GPUS`; None for none.

    Yields:
        Name, times, and facts: the largest errors against float64 over the largest value, and
        whether a second run gives the same bits; or None and why it could not run.
    """
    shape = SHAPES.get(case, SMALL)
    block = ProbeBlock(shape, device)
    yield BASELINE, clock(lambda: F.scaled_dot_product_attention(block.q, block.k, block.v)), {}
    yield "the same with statistics", clock(lambda: attend(block.q, block.k, block.v)), {}
    references: dict[int, Vectors] = {}
    for way, (run, weights) in reversed(block.ways().items()):  # the fused ones first
        try:
            wanted = references.setdefault(id(weights), block.reference(weights))
            first, again = run(), run()
            errors = [
                ((found.double() - each).abs().max() / each.abs().max()).item()
                for found, each in zip(first, wanted, strict=True)
            ]
            repeats = all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
            facts = {"error_a": errors[0], "error_ta": errors[1], "repeats": repeats}
            timing = clock(run)
        except Exception as error:  # of a compiler or a device; the other ways may run
            yield way, None, reason(error)
            continue
        if gpu is not None:
            weighted = _FEW if weights is block.few else None
            least = cost(shape, way.partition(",")[0], weighted=weighted)
            facts["floor_ms"] = floor_s(least, GPUS[gpu]) * 1e3 / shape.blocks
        yield way, timing, facts
