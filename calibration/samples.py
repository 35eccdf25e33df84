"""Images and expressions for calibration, and the transformer's inputs for them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rism.calibration.blockwise_run import LoadedGraph, Spool, StreamedGraph
from rism.calibration.open_graph import open_graph
from rism.runtime.bundle.graph_spec import SIZELESS
from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines.base import Arrays, Engine, LazyEngine
from rism.runtime.engines.tensor_checks import fixed_batch
from rism.runtime.errors import InputError, one_line
from rism.runtime.image.geometry import Plan
from rism.runtime.image.loading import ImageSource
from rism.runtime.image_encoder import ImageEncoder, ImageState
from rism.runtime.method.postprocess import localise_outputs
from rism.runtime.method.upsampling import upsample
from rism.runtime.prompt.embedder import PromptEmbedder, modulation_of
from rism.runtime.prompt.encoder import PromptEncoder, PromptState
from rism.runtime.prompt.vision_encoder import open_vision_encoder
from rism.runtime.transformer_inputs import prompt_token_weights, transformer_feeds

EXPRESSIONS = (
    "the object in the middle",
    "the largest object",
    "the object on the left",
    "the person",
    "the object on the right",
    "the smallest object",
)
"""Expressions for images that were given without any, in turn."""

_MAX_BYTES = 16 * 2**20
_MAX_ENTRIES = 100_000
_TEXT_BATCH = 8


@dataclass(frozen=True)
class CalibrationSample:
    """An image, in any form that `load_image` reads, with an expression."""

    image: ImageSource
    expression: str


def read_expressions(file: Path, images: Sequence[Path]) -> list[CalibrationSample]:
    """Read the expressions for a set of images.

    Args:
        file: JSON: a list of objects with "image", a file's name, and "expression"; or, where
            its name does not end in .json, text with one expression per line, which `in_turn`
            spreads over the images.
        images: the images.

    Raises:
        InputError: it is missing, damaged, empty, or names an image that is not there.
    """
    name = one_line(file.name, limit=60)
    try:
        with file.open("rb") as handle:
            raw = handle.read(_MAX_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"expressions {one_line(file)} cannot be read ({one_line(reason, limit=80)}), "
            "expected UTF-8 text with one per line, or JSON"
        ) from None
    if len(raw) > _MAX_BYTES:
        raise InputError(f"{name} has more than {_MAX_BYTES} bytes, expected expressions")
    if file.suffix.lower() == ".json":
        return _from_json(text, name, {image.name: image for image in images})
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or len(lines) > _MAX_ENTRIES:
        raise InputError(
            f"{name} has {len(lines)} expressions, expected 1 to {_MAX_ENTRIES}, one per line"
        )
    return in_turn(images, lines)


def in_turn(images: Sequence[Path], expressions: Sequence[str]) -> list[CalibrationSample]:
    """Pair images and expressions in turn, until all of both were used."""
    return [
        CalibrationSample(images[at % len(images)], expressions[at % len(expressions)])
        for at in range(max(len(images), len(expressions)))
    ]


def _from_json(text: str, name: str, images: Mapping[str, Path]) -> list[CalibrationSample]:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not readable JSON ({one_line(error, limit=120)})") from None
    if not isinstance(entries, list) or not 1 <= len(entries) <= _MAX_ENTRIES:
        raise InputError(
            f"{name} is not a list of 1 to {_MAX_ENTRIES} objects with 'image' and 'expression'"
        )
    samples = []
    for number, entry in enumerate(entries, 1):
        own = entry if isinstance(entry, dict) else {}
        image, expression = own.get("image"), own.get("expression")
        if not isinstance(image, str) or not isinstance(expression, str):
            raise InputError(
                f"{name}: entry {number} is not an object with text for 'image' and 'expression'"
            )
        if image not in images:
            raise InputError(
                f"{name}: entry {number} names '{one_line(image, limit=80)}', expected one of the "
                f"{len(images)} images in the folder given to --images"
            )
        samples.append(CalibrationSample(images[image], expression))
    return samples


class PreparedSamples:
    """Encoded samples; the transformer's inputs for them are in a spool."""

    def __init__(self, bundle: Bundle, spool: Spool) -> None:
        self._bundle, self._spool = bundle, spool
        self._samples: list[tuple[Plan, tuple[str, ...]]] = []

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, plan: Plan, feeds: Arrays) -> None:
        """Store the transformer's inputs for a sample whose image was resized by a plan."""
        for name, array in feeds.items():
            self._spool.put(len(self._samples), name, array)
        self._samples.append((plan, tuple(feeds)))

    def feeds(self, sample: int) -> Arrays:
        """Return a sample's inputs by logical name."""
        return {name: self._spool.get(sample, name) for name in self._samples[sample][1]}

    def by_graph(self, capture: str) -> dict[str, list[int]]:
        """Return the numbers of the samples by the name of the transformer graph of their size."""
        found: dict[str, list[int]] = {}
        for number, (plan, _) in enumerate(self._samples):
            name = self._bundle.manifest.at_size(f"transformer.{capture}", plan.resized_wh)
            found.setdefault(name, []).append(number)
        return found

    def mask(self, sample: int, capture: str, outputs: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
        """Return the mask of a sample from the transformer's outputs: (H, W) bool."""
        method, (plan, _) = self._bundle.manifest.method, self._samples[sample]
        own = {name: np.asarray(array[0], np.float32) for name, array in outputs.items()}
        found = localise_outputs(capture, own, tau=method.tau, prototype=method.prototype)
        mask: npt.NDArray[np.bool_] = upsample(found.scores.reshape(plan.grid_hw), plan) > 0
        return mask


def prepare(
    bundle: Bundle,
    samples: Sequence[CalibrationSample],
    folder: Path,
    *,
    threads: int | None = None,
    on_step: Callable[[int, int], None] = lambda _done, _total: None,
) -> PreparedSamples:
    """Encode images and expressions as a segmenter does, one block in memory at a time.

    The folder is for the transformer's inputs, and must exist as long as the result is used.
    `on_step` is called with the samples done and their total.

    Raises:
        InputError: an image or an expression that cannot be used.
    """
    manifest = bundle.manifest

    def load(name: str) -> Engine:
        return LoadedGraph(open_graph(bundle, name), threads=threads)

    engines: dict[str, Engine] = {
        name: StreamedGraph(open_graph(bundle, name), threads=threads)
        for name in manifest.graphs
        if name in SIZELESS
    }
    engines |= {
        name: LazyEngine(partial(load, name), provider="cpu")
        for name in manifest.graphs
        if name.startswith("vae_encoder")
    }
    noise = bundle.noise()
    images = ImageEncoder(bundle, engines, noise_shape=noise.shape, keep_pixels=False)
    encoder = PromptEncoder(manifest.prompt, bundle.tokenizer_json())
    vision_encoder = open_vision_encoder(manifest, encoder, engines)
    embedder = PromptEmbedder(
        encoder,
        engines["text_encoder"],
        max_batch=_TEXT_BATCH,
        fixed_batch=fixed_batch(manifest.graph("text_encoder").inputs, "input_ids"),
        vision_encoder=vision_encoder,
        modulation=modulation_of(manifest, engines),
    )
    instructions = [encoder.instruct(sample.expression) for sample in samples]
    prompts: list[PromptState] = []
    if vision_encoder is None:  # together: the encoder's blocks are read once for several
        prompts, _ = embedder.embed(instructions)
    ready = PreparedSamples(bundle, Spool(folder))
    for number, sample in enumerate(samples):
        state = images.encode(sample.image)
        if vision_encoder is not None:
            prompts.append(embedder.embed([instructions[number]], state)[0][0])
        ready.add(state.plan, _feeds(bundle, state, prompts[number], noise))
        on_step(number + 1, len(samples))
    return ready


def _feeds(
    bundle: Bundle, state: ImageState, prompt: PromptState, noise: npt.NDArray[np.float32]
) -> Arrays:
    manifest = bundle.manifest
    graph = manifest.graph(f"transformer.{manifest.default_capture}", state.plan.resized_wh)
    return transformer_feeds(
        state,
        [prompt],
        rules=manifest.prompt,
        weights=prompt_token_weights(None, [prompt])[:, : len(prompt.embeds)],
        noise=noise,
        tau=manifest.method.tau,
        fixed=fixed_batch(graph.inputs, "clean_latents"),
    )
