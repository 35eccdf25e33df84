"""`python -m benchmarks.probe`: the probe of one block, beside the attention that it reads.

Queries and keys of random numbers in the shapes of both models: the main attention as PyTorch
runs it (the baseline), the same telling its rows' log-sum-exp, and every way of reading a_l and
T_l a_l: the two attentions that are exported, the same arithmetic with statistics in PyTorch's
attention, and the Triton kernels with and without statistics, for all prompt tokens and for a
few. Each is held against float64. Beside the times stand the floors of a datasheet
(`--floors` prints those alone, and needs no GPU). What capture costs a whole forward pass is
measured by `python -m benchmarks.capture --variants fused,vectors`.

It needs an NVIDIA GPU, a CUDA build of PyTorch and Triton (the extra `probe`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.harness.measure import Timing, environment, repeat, repeat_on_gpu
from benchmarks.results import save
from benchmarks.rooflines.probe import GPUS, SHAPES, Shape, cost, floor_s, table
from rism.export.attention_capture import Capture, Spans
from rism.export.precision import PRECISIONS
from rism.export.probe import attend, probe_vectors, torch_form
from rism.runtime.errors import InputError, ProviderError, RismError, one_line

BASELINE = "main attention"
SMALL = Shape(heads=2, dim=32, prompt=16, clean=48, blocks=3, flop=0.0)
_FEW = 16
_WARM_UP = 5
Vectors = tuple[torch.Tensor, torch.Tensor]


class Block:
    """One block's queries, keys and values, and every way of probing it.

    Args:
        shape: of the model.
        device: "cuda", or "cpu" to try it out.
    """

    def __init__(self, shape: Shape, device: str) -> None:
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

    def literal(self, weights: torch.Tensor) -> Vectors:
        """Equations 1, 3 and 4 in float64, head by head."""
        shape = self.shape
        rows = torch.zeros(shape.clean, shape.keys, dtype=torch.float64, device=self.q.device)
        for head in range(shape.heads):
            q, k = self.clean[0, head].double(), self.k[0, head].double()
            rows += (q @ k.T * shape.dim**-0.5).softmax(-1) / shape.heads
        a = rows[:, : shape.prompt] @ weights[0].double()
        to_clean = rows[:, shape.keys - shape.clean :]
        return a[None], (to_clean @ a / to_clean.sum(-1))[None]


def measure(case: str, device: str, runs: int, gpu: str | None) -> Iterator[dict[str, Any]]:
    """Time every way of one case, and give each out as soon as it is known.

    Args:
        case: of `SHAPES`, or "small".
        device: "cuda" or "cpu".
        runs: to take the median of.
        gpu: whose floors to give beside the times, of `GPUS`; None for none.

    Returns:
        One row a way: seconds, their ratio to the main attention, the largest errors; or
        `not_run`, why there are none.
    """
    shape = SHAPES.get(case, SMALL)
    block = Block(shape, device)

    def time(run: Callable[[], object]) -> Timing:
        clock = repeat_on_gpu if device == "cuda" else repeat
        return clock(run, runs=runs, warm_up=_WARM_UP)

    main = time(lambda: F.scaled_dot_product_attention(block.q, block.k, block.v))
    yield {"way": BASELINE, **_times(main, main)}
    told = time(lambda: attend(block.q, block.k, block.v))
    yield {"way": "the same with statistics", **_times(told, main)}
    literal: dict[int, Vectors] = {}
    for way, (run, weights) in block.ways().items():
        try:
            wanted = literal.setdefault(id(weights), block.literal(weights))
            errors = [
                ((found.double() - each).abs().max() / each.abs().max()).item()
                for found, each in zip(run(), wanted, strict=True)
            ]
            row = {"way": way, **_times(time(run), main)}
        except Exception as error:  # of a compiler or a device; the other ways may run
            yield {"way": way, "not_run": f"{type(error).__name__}: {one_line(error)}"}
            continue
        row |= {"error_a": errors[0], "error_ta": errors[1]}
        if gpu is not None:
            weighted = _FEW if weights is block.few else None
            whole = cost(shape, way.partition(",")[0], weighted=weighted)
            row["floor_ms"] = floor_s(whole, GPUS[gpu]) * 1e3 / shape.blocks
        yield row


def _times(timing: Timing, main: Timing) -> dict[str, object]:
    return {**timing.to_json_dict(), "times_main_attention": timing.median / main.median}


def _head(case: str) -> str:
    return (
        f"{case:<16}{'':<26}{'ms':>9}{'x main':>9}{'floor ms':>10}{'error a':>10}{'error Ta':>10}"
    )


def _line(row: dict[str, Any]) -> str:
    start = f"{'':<16}{row['way']:<26}"
    if "not_run" in row:
        return f"{start}  not run: {row['not_run']}"
    line = f"{start}{row['median_s'] * 1e3:9.3f}{row['times_main_attention']:9.3f}"
    line += f"{row['floor_ms']:10.3f}" if "floor_ms" in row else f"{'-':>10}"
    for name in ("error_a", "error_ta"):
        line += f"{row[name]:10.1e}" if name in row else f"{'-':>10}"
    return line


def known_gpu(name: str) -> str | None:
    """Return which datasheet a device's name belongs to."""
    return next((gpu for gpu in GPUS if gpu in name), None)


def main() -> None:
    """Run what was asked for; a wrong request is one line and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe", description=__doc__)
    parser.add_argument("--floors", action="store_true", help="the floors alone, without a GPU")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--cases", default=",".join(SHAPES), help="or small, on a CPU")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    if args.floors:
        print(table(_FEW))
        return
    try:
        _run(args)
    except RismError as error:
        raise SystemExit(f"error: {error}") from None


def _run(args: argparse.Namespace) -> None:
    cases = [name.strip() for name in args.cases.split(",") if name.strip()]
    for name in cases:
        if name not in (*SHAPES, "small"):
            raise InputError(f"case '{name}' is not known, expected some of {', '.join(SHAPES)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ProviderError(
            f"device cuda is not here: PyTorch {torch.__version__} finds none, expected an NVIDIA "
            "GPU and a CUDA build of PyTorch; use --device cpu --cases small to try it out, or "
            "--floors"
        )
    gpu = known_gpu(torch.cuda.get_device_name()) if args.device == "cuda" else None
    results: dict[str, Any] = {"baseline": BASELINE, "device": args.device}
    told = partial(environment, packages=("torch", "triton"), gpu=args.device == "cuda")
    results["environment"] = told()
    save(args.json, results)
    with torch.no_grad():
        for name in cases:
            print(_head(name))
            for row in measure(name, args.device, args.runs, gpu):
                results.setdefault(name, []).append(row)
                save(args.json, results)  # a run that is cut short leaves what it had
                print(_line(row), flush=True)
    results["environment"] = told()  # a GPU's clocks are now those of its work
    save(args.json, results)


if __name__ == "__main__":
    main()
