"""`python -m benchmarks.precision`: what 16 bits do to every output, at the real widths.

For the widths of FLUX.2-klein 4B (3,072, 24 heads) and 9B (4,096, 32 heads) and of Step1X-Edit
1.0 (3,072, 24 heads, with its connector of 4,096), with one double-stream and two single-stream
blocks of random weights: PyTorch runs the modules that are exported, in bf16 and in the mixed
fp16 recipe, and each output is compared with float32 on the same weights. One size of each family
is then exported and run by onnxruntime on the CPU, from a picture to a mask.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.harness.measure import environment
from benchmarks.synthetic.flux2_checkpoint import SIZES, Shape, write_checkpoint
from benchmarks.synthetic.step1x_checkpoint import SMALL, STEP1X, write_original
from rism.export import ExportOptions, export_bundle
from rism.export.exporter import open_model
from rism.export.families.find import find_checkpoint
from rism.export.graph.capture_graph import CaptureGraph, CaptureOptions
from rism.export.precision import PRECISIONS
from rism.export.spec import OpenModel
from rism.runtime import Segmenter

Arrays = dict[str, npt.NDArray[Any]]

_GRID = (8, 8)
# Of a prompt that has padding: a picture's tokens and an instruction, of 640.
_REAL_TOKENS = 350
EXAMPLE = Path(__file__).parent.parent / "examples" / "street.png"


def write_klein(folder: Path, shape: Shape) -> None:
    """Write 1 + 2 blocks, and four of the language model; hidden states are 1, 2 and 3."""
    write_checkpoint(folder, replace(shape, double=1, single=2, text_blocks=4))
    settings = {"text_encoder_out_layers": [1, 2, 3], "feature_block": 1}
    (folder / "rism.json").write_text(json.dumps(settings))


def write_step1x(folder: Path) -> None:
    """Write 1 + 2 blocks and the whole connector; of the language model a block of each kind."""
    shape = replace(
        STEP1X,
        double=1,
        single=2,
        vision_depth=2,
        vision_full=(1,),
        text_blocks=1,
        text_shards=1,
        vocabulary=SMALL.vocabulary,
    )
    write_original(folder, shape, version="1.0")
    (folder / "rism.json").write_text(json.dumps({"feature_block": 1}))


@dataclass(frozen=True)
class Size:
    """A model at its real width, and whether it is run by onnxruntime too."""

    write: Callable[[Path], None]
    exported: bool


MODELS = {
    "4b": Size(lambda folder: write_klein(folder, SIZES["4b"]), exported=True),
    "9b": Size(lambda folder: write_klein(folder, SIZES["9b"]), exported=False),
    "step1x-1.0": Size(write_step1x, exported=True),
}


def run_transformer(model: OpenModel, name: str) -> Arrays:
    """One step in PyTorch, in the number types of a precision, on the same random inputs."""
    precision, options = PRECISIONS[name], CaptureOptions("vectors")
    graph = CaptureGraph(model.transformer(precision).fill(), model.spec, options, precision)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    tokens, prompt = _GRID[0] * _GRID[1], model.spec.prompt.max_length
    rows, columns = np.indices(_GRID)
    feeds = {
        "clean_latents": normal(1, tokens, model.spec.latent_channels),
        "noise": normal(1, tokens, model.spec.latent_channels),
        "prompt_embeds": normal(1, prompt, model.spec.prompt_dim),
        "prompt_weights": torch.ones(1, prompt),
        "positions": torch.from_numpy(np.stack([rows, columns], -1).reshape(-1, 2)).float(),
    }
    if model.spec.prompt_mask:
        mask = (torch.arange(prompt) < _REAL_TOKENS).float().unsqueeze(0)
        feeds["prompt_embeds"] *= mask.unsqueeze(-1)
        feeds["prompt_mask"] = mask
    with torch.no_grad():
        found = graph(**feeds)
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


def measure(name: str) -> dict[str, Any]:
    """Write one size, run it in every precision, and through onnxruntime where that is asked."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        checkpoint = Path(place) / "checkpoint"
        MODELS[name].write(checkpoint)
        model = open_model(find_checkpoint(str(checkpoint)))
        wanted = run_transformer(model, "fp32")
        for precision in ("bf16", "fp16"):
            found[precision] = compare(run_transformer(model, precision), wanted)
            cells = ", ".join(f"{key} {value:.2e}" for key, value in found[precision].items())
            width = model.spec.feature_dim
            print(f"{name} (width {width}, 1 + 2) {precision}: {cells}", flush=True)
        if MODELS[name].exported:
            found["onnxruntime fp32"] = run_bundle(checkpoint, Path(place) / "b", "fp32")
            print(f"{name} onnxruntime, CPU, fp32: {found['onnxruntime fp32']}", flush=True)
    return found


def main() -> None:
    """Print the errors, width by width."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    known = ",".join(MODELS)
    parser.add_argument("--sizes", default=known, help=f"some of {known}")
    parser.add_argument("--json", type=Path, help="write the figures there; it keeps other sizes'")
    args = parser.parse_args()
    sizes = args.sizes.split(",")
    if unknown := [name for name in sizes if name not in MODELS]:
        parser.error(f"size '{unknown[0]}' is not known, expected some of {known}")
    before = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    results = before | {"environment": environment()}
    for name in sizes:
        results[f"{name}, 1 + 2 blocks"] = measure(name)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
