"""Text encoder and VAE encoder of the built-in model: graphs of ours against PyTorch's own.

Rows: the libraries' classes in PyTorch, as the pipeline calls them; the module that is exported,
by ONNX Runtime on a graph without our passes; and the bundle's graph.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch

from benchmarks.baselines.plain_onnx import write_plain_graph
from benchmarks.baselines.pytorch_pipeline import CHECKPOINT, PytorchPipeline
from benchmarks.harness.checks import same_values
from benchmarks.harness.rows import (
    Row,
    Task,
    bundle_folder,
    check_known,
    image_size,
    time_ways,
)
from rism.export.exporter import open_model
from rism.export.families.find import find_checkpoint
from rism.export.precision import PRECISIONS
from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines.onnxruntime import OrtEngine
from rism.runtime.prompt.encoder import PromptEncoder

PYTORCH, PLAIN, OURS = "PyTorch", "ONNX Runtime, plain graph", "rism"
# Weights of the bundle are stored in 16 bits.
_TOLERANCE = 1e-3

Array = npt.NDArray[Any]
Way = Callable[[], Array]


def measure(task: Task) -> list[Row]:
    """Measure one of the two parts."""
    makers = {"text_encoder": _text, "vae_encoder": _vae}
    [part] = check_known("part", [task["part"]], makers)
    bundle = Bundle.open(bundle_folder("mini"), verify=False)
    feeds, pytorch = makers[part](task, PytorchPipeline(), bundle)
    spec = bundle.manifest.graph(part)
    engine = OrtEngine(bundle.file(spec.file), spec)
    ways: dict[str, Way] = {PYTORCH: pytorch}
    if task["plain"]:
        ways[PLAIN] = _plain(part, feeds)
    ways[OURS] = lambda: next(iter(engine.run(feeds).values()))
    wanted = pytorch()
    errors = {name: same_values(name, way(), wanted, _TOLERANCE) for name, way in ways.items()}
    return time_ways(task, ways, notes={name: {"error": each} for name, each in errors.items()})


def _plain(part: str, feeds: dict[str, Array]) -> Way:
    """The module that is exported, on a graph that no pass of ours has seen."""
    model = open_model(find_checkpoint(str(CHECKPOINT)))
    module = getattr(model, part)(PRECISIONS["fp32"]).fill()
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "plain.onnx"
        tensors = {name: torch.from_numpy(value) for name, value in feeds.items()}
        write_plain_graph(module, tensors, ["out"], file)
        session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda: np.asarray(session.run(None, feeds)[0])


def _text(task: Task, pipeline: PytorchPipeline, bundle: Bundle) -> tuple[dict[str, Array], Way]:
    texts = [f"the green van {number}" for number in range(task["batch"])]
    prompts = PromptEncoder(bundle.manifest.prompt, bundle.tokenizer_json())
    encoded = prompts.tokenize([prompts.instruct(text) for text in texts])
    ids, mask = (
        np.ascontiguousarray(each, np.int64) for each in (encoded.input_ids, encoded.attention_mask)
    )

    @torch.no_grad()
    def pytorch() -> Array:
        # As `Flux2KleinPipeline._get_qwen3_prompt_embeds` does, tokens given.
        found = pipeline.text(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            output_hidden_states=True,
            use_cache=False,
        )
        layers = pipeline.settings["text_encoder_out_layers"]
        stacked = torch.stack([found.hidden_states[layer] for layer in layers], dim=1)
        return np.asarray(stacked.transpose(1, 2).flatten(2).numpy())

    return {"input_ids": ids, "attention_mask": mask}, pytorch


def _vae(task: Task, pipeline: PytorchPipeline, _bundle: Bundle) -> tuple[dict[str, Array], Way]:
    width, height = image_size(task["size"])
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (1, 3, height, width)).astype(np.float32)

    def pytorch() -> Array:
        return np.asarray(pipeline.encode_image(torch.from_numpy(image)).numpy())

    return {"image": image}, pytorch
