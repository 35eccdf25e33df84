"""The parity gate: every graph against the PyTorch model, the modes against each other.

Graphs are compared in float32 on the weights that the bundle stores: what is left of a
difference is the graph, not rounding. Graphs in fp16 are then run as they are, and their
rounding is put beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import torch

from rism.calibration.open_graph import widen
from rism.export.errors import ParityError
from rism.export.graph.cpu_form import cpu_form
from rism.export.parity.inputs import (
    Samples,
    batches,
    draw,
    inputs_of,
    text_feeds,
    transformer_feeds,
    vision_feeds,
)
from rism.export.precision import Precision
from rism.export.spec import OpenModel, ReferenceInputs, ReferenceModel, ReferencePrompt
from rism.runtime.image.geometry import Plan
from rism.runtime.method import equations
from rism.runtime.method.upsampling import upsample

Arrays = dict[str, npt.NDArray[Any]]
Checks = dict[str, dict[str, "Check"]]

# Largest difference over the larger of 1 and the reference's largest value, in float32.
LIMIT = 2e-5


@dataclass(frozen=True)
class Check:
    """One comparison: the largest error seen, and what is allowed."""

    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the limit."""
        return self.error <= self.limit


@dataclass(frozen=True)
class _Limits:
    """What is allowed of an output, of a map that min-max stretched, and of a mask's pixels."""

    output: float
    map: float
    mask: float


# A stray token at the very boundary may fall on either side of zero.
_EXACT = _Limits(output=LIMIT, map=50 * LIMIT, mask=1e-3)
# fp16 has 11 bits: more than this is a fault, not rounding.
_ROUNDED = _Limits(output=0.1, map=0.2, mask=0.1)


@dataclass
class Gate:
    """What is compared, and how.

    Attributes:
        model: the whole model, or one with a few of its blocks.
        folder: holds the graphs, under the names of `_graph_file`.
        precision: of the transformer's graphs, and of the VAE encoder's.
        text_precision: of those of the text side.
        lean: for models of real size: one small sample, and graphs run without the copies that
            optimisation makes.
    """

    model: OpenModel
    folder: Path
    precision: Precision
    text_precision: Precision
    lean: bool = False

    @cached_property
    def samples(self) -> list[Samples]:
        """What is fed to graphs and to PyTorch."""
        return draw(self.model.spec, lean=self.lean)

    @cached_property
    def reference(self) -> ReferenceModel:
        """What the graphs are compared with."""
        return self.model.reference(self.precision)

    @cached_property
    def text_reference(self) -> ReferenceModel:
        """The same with the text side as its graphs store it."""
        if self.text_precision == self.precision:
            return self.reference
        return self.model.reference(self.text_precision)

    @cached_property
    def latents(self) -> list[torch.Tensor]:
        """What the pipeline makes of the samples' images."""
        return self.reference.vae_latents([sample.image for sample in self.samples])

    @cached_property
    def prompts(self) -> list[list[ReferencePrompt]]:
        """How the pipeline encodes each sample's instructions."""
        if self.model.spec.prompt.vision:
            say = self.text_reference.text
            return [say(each.instructions, each.picture) for each in self.samples]
        # Who does not look at the image is asked once for what is the same.
        asked = {each.instructions: each for each in self.samples}
        say = self.text_reference.text
        said = {text: say(text, each.picture) for text, each in asked.items()}
        return [said[each.instructions] for each in self.samples]

    def vision_encoder(self, file: str) -> dict[str, Check]:
        """Compare the tower that looks at the image with the library's own."""
        checks: dict[str, Check] = {}
        for sample in self.samples:
            feeds, _ = vision_feeds(self.model.spec, sample)
            wanted = self.text_reference.image_embeds(sample.picture)
            assert wanted is not None, "a model with this graph has this function"
            for name, got, limits in self._runs(file, feeds, self.text_precision):
                error = difference(got["image_embeds"], wanted.numpy())
                worst(checks, name, "image_embeds", error, limits.output)
        return gate("vision_encoder", checks)

    def text_encoder(self, file: str) -> dict[str, Check]:
        """Compare the text encoder with the pipeline's own function."""
        spec, checks = self.model.spec, dict[str, Check]()
        samples = self.samples if spec.prompt.vision else self.samples[:1]
        for sample, wanted in zip(samples, self.prompts, strict=False):
            embeds = self.text_reference.image_embeds(sample.picture)
            feeds, encoded = text_feeds(spec, self.model.tokenizer_json, sample, embeds)
            for name, got, limits in self._runs(file, feeds, self.text_precision):
                for row, reference in enumerate(wanted):
                    length = int(encoded.lengths[row])
                    rows = got["prompt_embeds"][row, :length]
                    error = difference(rows, reference.embeds[:length].numpy())
                    worst(checks, name, "prompt_embeds", error, limits.output)
        return gate("text_encoder", checks)

    def modulation(self, file: str) -> dict[str, Check]:
        """Compare the modulation of every block with that of the transcribed transformer."""
        checks: dict[str, Check] = {}
        for prompt in (each for prompts in self.prompts for each in batches(prompts)):
            assert prompt.mask is not None, "a model with this graph has both"
            assert prompt.modulation is not None
            feeds = {
                "prompt_embeds": prompt.embeds.numpy(), "prompt_mask": prompt.mask.numpy(),
            }  # fmt: skip
            for name, got, limits in self._runs(file, feeds):
                error = difference(got["modulation"], prompt.modulation.numpy())
                worst(checks, name, "modulation", error, limits.output)
        return gate("modulation", checks)

    def vae_encoder(self, files: Mapping[tuple[int, int] | None, str]) -> dict[str, Check]:
        """Compare the VAE encoder with the pipeline's own functions; files by fixed size."""
        checks: dict[str, Check] = {}
        for sample, wanted in zip(self.samples, self.latents, strict=True):
            file = files[sample.size_wh if None not in files else None]
            for name, got, limits in self._runs(file, {"image": sample.image.numpy()}):
                error = difference(got["clean_latents"], wanted.numpy())
                worst(checks, name, "clean_latents", error, limits.output)
        return gate("vae_encoder", checks)

    def transformer(
        self,
        files: Mapping[tuple[int, int] | None, Mapping[str, str]],
        noise: npt.NDArray[np.float32],
        feature_site: str,
    ) -> Checks:
        """Compare each capture mode with the reference one: its outputs, its maps and its mask."""
        spec, reference = self.model.spec, self.reference
        given: list[tuple[Samples, ReferenceInputs]] = []
        for sample, clean, prompts in zip(self.samples, self.latents, self.prompts, strict=True):
            given += [
                (sample, each) for each in inputs_of(sample, clean, prompts, noise, spec.noisy_grid)
            ]
        captures = reference.dit([inputs for _, inputs in given], spec.feature_block)
        checks: Checks = {}
        read = slice(None) if spec.capture_blocks is None else list(spec.capture_blocks)
        for (sample, inputs), capture in zip(given, captures, strict=True):
            vectors = capture.attention_vectors[:, read]
            matrices = capture.transition_matrices[:, read]
            feeds = transformer_feeds(
                inputs, noise=noise, shared_padding=spec.prompt.shared_padding
            )
            tokens = capture.token_attention[:, read].sum(1)
            last = feeds["prompt_weights"].shape[1] - 1
            wanted = {
                "attention_vectors": vectors.numpy(),
                "transition_matrices": matrices.numpy(),
                "propagated_vectors": (matrices @ vectors.unsqueeze(-1))[..., 0].numpy(),
                "features": capture.features[feature_site].numpy(),
                # The last row that a graph gets stands for all padding after it.
                "token_attention": torch.cat(
                    [tokens[..., :last], tokens[..., last:].sum(-1, keepdim=True)], -1
                ).numpy(),
            }
            for mode, file in files[sample.size_wh if None not in files else None].items():
                found = checks.setdefault(mode, {})
                tau = {"tau": np.array([spec.tau], np.float32)} if mode == "scores" else {}
                for name, got, limits in self._runs(file, feeds | tau):
                    for output in [output for output in got if output in wanted]:
                        error = difference(got[output], wanted[output])
                        worst(found, name, output, error, limits.output)
                    self._masks(found, name, sample, got, wanted, limits)
                    for output in got:
                        # An output that nothing was compared with has not passed.
                        found.setdefault(f"{name}{output}", Check(math.inf, limits.output))
        return {
            f"transformer.{mode}": gate(f"transformer.{mode}", found)
            for mode, found in checks.items()
        }

    def _runs(
        self, file: str, feeds: Arrays, precision: Precision | None = None
    ) -> Iterator[tuple[str, Arrays, _Limits]]:
        """Run a graph in float32, and as it is where the CPU can: prefix, outputs, limits."""
        path, precision = self.folder / file, precision or self.precision
        with _wide(path, precision) as wide:
            yield "", run_graph(wide, feeds, lean=self.lean), _EXACT
        if precision.compute == torch.float16:
            yield "fp16 ", run_graph(path, feeds, lean=self.lean), _ROUNDED
        cpu = path.with_name(cpu_form(file))
        if cpu.exists():
            yield "cpu ", run_graph(cpu, feeds, lean=self.lean), _EXACT

    def _masks(
        self,
        checks: dict[str, Check],
        prefix: str,
        sample: Samples,
        got: Arrays,
        wanted: Arrays,
        limits: _Limits,
    ) -> None:
        """Masks at twice the image's size: share of pixels that differ from the reference's."""
        spec = self.model.spec
        size = (2 * sample.size_wh[0], 2 * sample.size_wh[1])
        view = Plan(size, sample.size_wh, (0, 0, *sample.size_wh), sample.grid_hw)
        for item in range(len(wanted["features"])):
            reference = equations.segment_tokens(
                wanted["attention_vectors"][item],
                wanted["propagated_vectors"][item],
                wanted["features"][item],
                tau=spec.tau,
            )
            if "scores" in got:
                scores = got["scores"][item]
                # Min-max stretches rounding by one over the map's span.
                for name, value in (
                    ("scores", reference.scores),
                    ("coarse_attention", reference.coarse),
                    ("refined_attention", reference.refined),
                ):
                    worst(checks, prefix, name, difference(got[name][item], value), limits.map)
                fisher = np.array([reference.separability], np.float32)
                error = difference(got["separability"][item : item + 1], fisher)
                worst(checks, prefix, "separability", error, limits.map)
            else:
                propagated = got.get("propagated_vectors")
                if propagated is None:
                    propagated = equations.propagate(
                        got["transition_matrices"], got["attention_vectors"]
                    )
                found = equations.segment_tokens(
                    got["attention_vectors"][item],
                    propagated[item],
                    got["features"][item],
                    tau=spec.tau,
                )
                scores = found.scores
                if limits is _ROUNDED:
                    # A single token that rounding brings across tau may change the whole mask:
                    # those are counted, and the mask is that of the reference's region.
                    moved = (found.refined > spec.tau) != (reference.refined > spec.tau)
                    worst(checks, prefix, "region", float(moved.mean()), limits.mask)
                    scores = equations.segment_tokens(
                        wanted["attention_vectors"][item],
                        wanted["propagated_vectors"][item],
                        got["features"][item],
                        tau=spec.tau,
                    ).scores
            masks = [
                upsample(np.asarray(s).reshape(view.grid_hw), view) > 0
                for s in (scores, reference.scores)
            ]
            share = float((masks[0] != masks[1]).mean())
            worst(checks, prefix, "mask", share, limits.mask)


def run_graph(path: Path, feeds: Mapping[str, npt.NDArray[Any]], *, lean: bool = False) -> Arrays:
    """Run a graph on the CPU; outputs by name.

    Args:
        path: the ONNX file.
        feeds: its inputs.
        lean: leave weights where they are mapped, and keep no memory between nodes.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Threads that wait for more work by spinning cost more here than the work itself.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if lean:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.disable_prepacking", "1")
        # In the file's order, where each weight is cast just before it is used.
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


@contextmanager
def _wide(path: Path, precision: Precision) -> Iterator[Path]:
    """Give the graph in float32: itself, or a twin on the same weights for a while."""
    if precision.compute == torch.float32:
        yield path
        return
    twin = path.with_name(f"wide.{path.name}")
    model = ir.load(path)
    widen(model)
    try:
        ir.save(model, twin)
        yield twin
    finally:
        twin.unlink(missing_ok=True)


def difference(got: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    """Largest absolute difference over the larger of 1 and the largest reference value."""
    if got.shape != wanted.shape:
        return float("inf")
    if not np.isfinite(got).all():
        return float("nan")
    return float(np.abs(got - wanted).max() / max(1.0, float(np.abs(wanted).max())))


def worst(
    checks: dict[str, Check], prefix: str, name: str, error: float, limit: float = LIMIT
) -> None:
    """Keep the larger error under the name; NaN is worse than any number."""
    key = f"{prefix}{name}"
    error = math.inf if math.isnan(error) else error
    checks[key] = Check(max(error, checks.get(key, Check(0.0, limit)).error), limit)


def gate(graph: str, checks: dict[str, Check]) -> dict[str, Check]:
    """Return the checks, or raise for the first that failed."""
    for name, check in checks.items():
        if not check.passed:
            raise ParityError(
                f"{graph}: output '{name}' differs from the PyTorch model by {check.error:.2e}, "
                f"expected at most {check.limit:.0e}: no bundle was written"
            )
    return checks
