"""`python -m benchmarks.precision`: what 16 bits do to every output, at the real widths.

For the widths of FLUX.2-klein 4B (3,072, 24 heads) and 9B (4,096, 32 heads), with one
double-stream and two single-stream blocks of random weights: PyTorch runs the modules that are
exported, in bf16 and in the mixed fp16 recipe, and each output is compared with float32 on the
same weights. The 4B one is then exported and run by onnxruntime on the CPU, from a picture to a
mask.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.measure import environment
from benchmarks.random_checkpoint import SIZES, Shape, write_checkpoint
from rism.export import ExportOptions, export_bundle
from rism.export.checkpoint import find_checkpoint
from rism.export.families.flux2_klein import open_klein
from rism.export.graphs import CaptureGraph, CaptureOptions
from rism.export.precision import PRECISIONS
from rism.export.spec import OpenModel
from rism.runtime import Segmenter

Arrays = dict[str, npt.NDArray[Any]]

_GRID = (8, 8)
_PROMPT = 512
EXAMPLE = Path(__file__).parent.parent / "examples" / "street.png"


def reduced(shape: Shape) -> Shape:
    """The same widths with 1 + 2 blocks and four of the language model."""
    return replace(shape, double=1, single=2, text_blocks=4)


def make_model(folder: Path, shape: Shape) -> OpenModel:
    """Write and open a checkpoint; its hidden states are 1, 2 and 3."""
    write_checkpoint(folder, shape)
    settings = {"text_encoder_out_layers": [1, 2, 3], "feature_block": 1}
    (folder / "rism.json").write_text(json.dumps(settings))
    return open_klein(find_checkpoint(str(folder)))


def run_transformer(model: OpenModel, name: str) -> Arrays:
    """One step in PyTorch, in the number types of a precision, on the same random inputs."""
    precision, options = PRECISIONS[name], CaptureOptions("vectors")
    graph = CaptureGraph(model.transformer(precision).fill(), model.spec, options, precision)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    tokens = _GRID[0] * _GRID[1]
    rows, columns = np.indices(_GRID)
    with torch.no_grad():
        found = graph(
            clean_latents=normal(1, tokens, model.spec.latent_channels),
            noise=normal(1, tokens, model.spec.latent_channels),
            prompt_embeds=normal(1, _PROMPT, model.spec.prompt_dim),
            prompt_weights=torch.ones(1, _PROMPT),
            positions=torch.from_numpy(np.stack([rows, columns], -1).reshape(-1, 2)).float(),
        )
    return {key: value.numpy() for key, value in zip(options.outputs, found, strict=True)}


def compare(found: Arrays, wanted: Arrays) -> dict[str, float]:
    """Largest error of each output over its largest value.

    Masks say nothing here: random features put half of the tokens next to the boundary. Those of
    the built-in model are compared in tests/export/test_precision.py.
    """
    return {
        name: float(np.abs(found[name] - value).max() / np.abs(value).max())
        for name, value in wanted.items()
    }


def run_bundle(checkpoint: Path, folder: Path, precision: str) -> dict[str, float]:
    """Export, and run from a picture to a mask with onnxruntime on the CPU."""
    start = time.perf_counter()
    options = ExportOptions(precision=precision, size_level=512, parity="blocks")
    report = export_bundle(str(checkpoint), folder, options)
    exported = time.perf_counter()
    segmenter = Segmenter.from_bundle(folder, provider="cpu", verify=False)
    loaded = time.perf_counter()
    result = segmenter.segment(EXAMPLE, "the green van")
    return {
        "bundle_bytes": report.size_bytes,
        "export_s": round(exported - start, 1),
        "load_s": round(loaded - exported, 1),
        "run_s": round(time.perf_counter() - loaded, 1),
        "tokens": result.plan.tokens,
        "finite": float(np.isfinite(result.score_map).all()),
    }


def main() -> None:
    """Print the errors, width by width."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("--sizes", default="4b,9b", help=f"some of {','.join(SIZES)}")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    results: dict[str, object] = {"environment": environment()}
    for size in args.sizes.split(","):
        shape = reduced(SIZES[size])
        with tempfile.TemporaryDirectory() as place:
            checkpoint = Path(place) / "checkpoint"
            model = make_model(checkpoint, shape)
            wanted = run_transformer(model, "fp32")
            found: dict[str, Any] = {}
            for name in ("bf16", "fp16"):
                found[name] = compare(run_transformer(model, name), wanted)
                cells = ", ".join(f"{key} {value:.2e}" for key, value in found[name].items())
                print(f"{size} (width {model.spec.feature_dim}, 1 + 2) {name}: {cells}", flush=True)
            if size == "4b":
                found["onnxruntime fp32"] = run_bundle(checkpoint, Path(place) / "b", "fp32")
                print(f"{size} onnxruntime, CPU, fp32: {found['onnxruntime fp32']}", flush=True)
            results[f"{size}, 1 + 2 blocks"] = found
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
