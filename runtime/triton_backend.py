"""The model `rism` of a Triton repository, in the server's Python backend.

It takes an image's bytes and an expression and returns a mask as PNG. The graphs are other models
of the repository, called inside the server.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from rism.runtime.arrays import Array
from rism.runtime.bundle.graph_spec import GraphSpec
from rism.runtime.bundle.manifest import Manifest, parse_manifest
from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines.base import Arrays, Engine
from rism.runtime.errors import BundleError, InputError, ProviderError, RismError, one_line
from rism.runtime.result.rendering import encode_png
from rism.runtime.result.segmentation import Segmentation
from rism.runtime.segmenter import Segmenter

SERVED = "served.json"
INPUTS = {"image": ("BYTES", 1), "expression": ("BYTES", 1)}
OUTPUTS = {
    "mask": ("BYTES", 1),
    "box_xyxy": ("INT32", 4),
    "area_share": ("FP32", 1),
    "separability": ("FP32", 1),
    "confidence": ("FP32", 1),
    "reason": ("BYTES", 1),
}
"""Tensors by name: their type by the KServe v2 protocol, and how many values a row has."""
_SHARED = ("noise", "positions", "tau")  # what a transformer that joins requests makes itself

_Row: TypeAlias = tuple[bytes, str]


class ServedGraph:
    """One graph, run by another model of the server.

    `joins` says that it is a transformer that takes latents by row and column of the grid.
    """

    provider = "triton"

    def __init__(self, model: str, spec: GraphSpec, *, joins: bool) -> None:
        self._model = model
        self._spec = spec
        self._joins = joins

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Run the graph: arrays by logical name, in and out.

        Raises:
            ProviderError: the server answered with an error.
        """
        utils = _utils()
        inputs = []
        for logical, spec in self._spec.inputs.items():
            if self._joins and logical in _SHARED:
                continue
            array = np.ascontiguousarray(feeds[logical], np.dtype(spec.dtype))
            if self._joins and logical == "clean_latents":
                rows, columns = (int(last) + 1 for last in feeds["positions"][-1])
                array = array.reshape(len(array), rows, columns, -1)
            inputs.append(utils.Tensor(spec.name, array))
        outputs = self._spec.outputs
        answer = utils.InferenceRequest(
            model_name=self._model,
            inputs=inputs,
            requested_output_names=[spec.name for spec in outputs.values()],
            preferred_memory=utils.PreferredMemory(utils.TRITONSERVER_MEMORY_CPU),
        ).exec()
        if answer.has_error():
            raise ProviderError(
                f"model {self._model} failed ({one_line(answer.error().message(), limit=200)}): "
                "send smaller images, or see the server's log"
            )
        found = {
            logical: utils.get_output_tensor_by_name(answer, spec.name).as_numpy()
            for logical, spec in outputs.items()
        }
        # A server gives a number for each row as (B, 1).
        return {
            logical: array.reshape(-1) if len(outputs[logical].shape) == 1 else array
            for logical, array in found.items()
        }


@dataclass(frozen=True)
class _Served:
    """What the exporter wrote beside model.py."""

    capture: str
    max_batch: int
    tau: float
    joins: bool
    models: Mapping[str, str]


class TritonPythonModel:
    """The class that the server looks for in model.py."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open what the exporter wrote; the server calls this once, with the model's folder."""
        folder = Path(args["model_repository"]) / args["model_version"]
        served = _Served(**json.loads((folder / SERVED).read_bytes()))
        bundle = _open(folder)
        self._tau = served.tau
        self._segmenter = Segmenter(
            bundle,
            _engines(bundle.manifest, served),
            capture=served.capture,
            max_batch=served.max_batch,
            provider_reason="served by Triton",
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests, each of one or more rows of an image and an expression.

        Expressions on one image are run together, whichever requests they came in.
        """
        utils = _utils()
        asked: list[list[_Row]] = []
        answers: dict[int, Any] = {}
        for at, request in enumerate(requests):
            try:
                asked.append(_rows(utils, request))
            except InputError as error:
                asked.append([])
                answers[at] = _failure(utils, error)
        found: dict[_Row, Segmentation] = {}
        for image in dict.fromkeys(row[0] for rows in asked for row in rows):
            concerned = [at for at, rows in enumerate(asked) if image in {row[0] for row in rows}]
            try:
                self._segment(image, [row for at in concerned for row in asked[at]], found)
            except RismError:
                # One request has a wrong expression or image: answer the others.
                for at in concerned:
                    try:
                        self._segment(image, asked[at], found)
                    except RismError as error:
                        answers[at] = _failure(utils, error)
        return [
            answers[at] if at in answers else _success(utils, [found[row] for row in rows])
            for at, rows in enumerate(asked)
        ]

    def _segment(self, image: bytes, rows: Sequence[_Row], found: dict[_Row, Segmentation]) -> None:
        """Segment what rows ask of one image."""
        expressions = list(dict.fromkeys(text for seen, text in rows if seen == image))
        results = self._segmenter.segment(image, expressions, tau=self._tau)
        found |= {(image, text): r for text, r in zip(expressions, results, strict=True)}


def _open(folder: Path) -> Bundle:
    """Open the part of a bundle that is beside model.py: its manifest, tokenizer and noise."""
    raw = (folder / "manifest.json").read_bytes()
    manifest = parse_manifest(json.loads(raw))
    for name in (manifest.prompt.tokenizer, manifest.noise.file):
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if digest != manifest.files[name].sha256:
            raise BundleError(
                f"'{name}' is not the one that the manifest lists: write the repository again with "
                "rism export-triton"
            )
    return Bundle(folder, manifest, hashlib.sha256(raw).hexdigest())


def _engines(manifest: Manifest, served: _Served) -> dict[str, Engine]:
    """Return an engine for each graph, under the names that a segmenter knows."""
    engines: dict[str, Engine] = {}
    for graph, model in served.models.items():
        kind, at, size = graph.partition("@")
        transformer = kind.startswith("transformer.")
        name = f"transformer{at}{size}" if transformer else graph
        joins = transformer and served.joins
        engines[name] = ServedGraph(model, manifest.graphs[graph], joins=joins)
    return engines


def _rows(utils: Any, request: Any) -> list[_Row]:
    images, texts = (
        utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)
        for name in ("image", "expression")
    )
    try:
        return [(bytes(p), bytes(t).decode()) for p, t in zip(images, texts, strict=True)]
    except UnicodeDecodeError as error:
        raise InputError(f"an expression is not UTF-8 ({error.reason}), expected text") from None


def result_tensors(results: Sequence[Segmentation]) -> Arrays:
    """Return `OUTPUTS` of results, a row for each; bytes are in arrays of objects."""
    masks = [encode_png(result.mask_hw.astype(np.uint8) * 255) for result in results]
    boxes = [result.box_xyxy or (0, 0, 0, 0) for result in results]
    return {
        "mask": np.array([[mask] for mask in masks], np.object_),
        "box_xyxy": np.array(boxes, np.int32),
        "area_share": np.array([[result.area_share] for result in results], np.float32),
        "separability": np.array([[result.separability] for result in results], np.float32),
        # None becomes NaN: a tensor has a number in every place.
        "confidence": np.array([[result.confidence] for result in results], np.float32),
        "reason": np.array([[(result.reason or "").encode()] for result in results], np.object_),
    }


def _success(utils: Any, results: Sequence[Segmentation]) -> Any:
    """Put results into a response, a row for each."""
    arrays = result_tensors(results)
    return utils.InferenceResponse([utils.Tensor(name, array) for name, array in arrays.items()])


def _failure(utils: Any, error: RismError) -> Any:
    code = "INVALID_ARG" if isinstance(error, InputError) else "INTERNAL"
    problem = utils.TritonError(one_line(error, limit=1000), getattr(utils.TritonError, code))
    return utils.InferenceResponse(error=problem)


def _utils() -> Any:
    """Import what only a server's Python has."""
    return import_module("triton_python_backend_utils")
