"""What 16 bits do to every output of a transformer of the published widths, in PyTorch.

With a few blocks of random weights, the modules that are exported run in bf16 and in the mixed
fp16 recipe; each output is compared with float32 on the same weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.harness.rows import Row, Task, check_known, of_value
from benchmarks.synthetic.checkpoints import MODELS, parse_blocks, write_model
from rism.export.exporter import open_model
from rism.export.families.find import find_checkpoint
from rism.export.graph.capture_graph import CaptureGraph, CaptureOptions
from rism.export.precision import PRECISIONS
from rism.export.spec import OpenModel

Arrays = dict[str, npt.NDArray[Any]]

_GRID = (8, 8)
# Of a prompt of 640 that has padding: an image's tokens and an instruction.
_REAL_TOKENS = 350


def measure(task: Task) -> Iterator[Row]:
    """Give the largest error of each output of each model, a group each."""
    for name in check_known("model", task["models"], MODELS):
        with tempfile.TemporaryDirectory() as place:
            checkpoint = Path(place) / "checkpoint"
            write_model(checkpoint, name, parse_blocks(task["blocks"]))
            model = open_model(find_checkpoint(str(checkpoint)))
            wanted = run_transformer(model, "fp32")
            for precision in ("bf16", "fp16"):
                found = compare(run_transformer(model, precision), wanted)
                for output, error in found.items():
                    yield of_value(precision, error, unit="", group=f"{name}, {output}")


def run_transformer(model: OpenModel, name: str) -> Arrays:
    """Run one step in the number types of a precision, always on the same random inputs."""
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
    """Return the largest error of each output over its largest value.

    Masks are not compared: random features put half of the tokens next to the boundary. Those of
    the built-in model are compared in tests/export/test_precision.py.
    """
    return {
        name: float(np.abs(found[name] - value).max() / np.abs(value).max())
        for name, value in wanted.items()
    }
