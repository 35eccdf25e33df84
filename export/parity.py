"""The parity gate: every graph against the PyTorch model, the modes against each other.

Graphs are compared in float32 on the weights that the bundle stores: what is left of a
difference is the graph, not rounding. Graphs in fp16 are then run as they are, and their
rounding is put beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import torch

from rism.export.errors import ParityError
from rism.export.passes import widen
from rism.export.precision import Precision
from rism.export.spec import LiteralInputs, OpenModel
from rism.runtime import method
from rism.runtime.geometry import Plan, upsample
from rism.runtime.prompt import PromptEncoder

__all__ = ["Check", "Checks", "Gate", "Samples", "run_graph"]

Arrays = dict[str, npt.NDArray[Any]]
Checks = dict[str, dict[str, "Check"]]

# Largest difference over the larger of 1 and the reference's largest value, in float32.
LIMIT = 2e-5
_GRIDS = ((1.0, 1.0), (1.5, 1.0), (1.0, 1.7))
_EXPRESSIONS = ("the green van", "the small red dog on the left")


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


@dataclass(frozen=True)
class Samples:
    """Inputs that the gate feeds to the graphs and to PyTorch."""

    grid_hw: tuple[int, int]
    size_wh: tuple[int, int]
    image: torch.Tensor  # (1, 3, h, w)
    instructions: tuple[str, ...]


@dataclass(frozen=True)
class Gate:
    """What is compared, and how.

    Attributes:
        model: the whole model, or one with a few of its blocks.
        folder: holds the graphs, under the names of `_graph_file`.
        precision: of the graphs.
        lean: for models of real size: one small sample, and graphs run without the copies that
            optimisation makes.
    """

    model: OpenModel
    folder: Path
    precision: Precision
    lean: bool = False

    def samples(self) -> list[Samples]:
        """Smooth random pictures of three aspect ratios, a fraction of the model's own size."""
        geometry = self.model.spec.geometry
        if geometry.sizes and not self.lean:
            sizes = list(geometry.sizes)
        else:
            side = min(geometry.size_level, (8 if self.lean else 16) * geometry.token_px)
            sizes = [_sized(side, ratio, geometry.multiple_px) for ratio in _GRIDS]
        if self.lean:
            sizes = sizes[-1:]
        return [self._sample(number, size) for number, size in enumerate(sizes)]

    def _sample(self, number: int, size_wh: tuple[int, int]) -> Samples:
        geometry = self.model.spec.geometry
        rng = np.random.default_rng(number)
        coarse = torch.from_numpy(rng.uniform(-1, 1, (1, 3, 6, 6)).astype(np.float32))
        image = torch.nn.functional.interpolate(coarse, size=size_wh[::-1], mode="bicubic")
        grid = (size_wh[1] // geometry.token_px, size_wh[0] // geometry.token_px)
        template = self.model.spec.prompt.template
        texts = _EXPRESSIONS[: 1 if self.lean or geometry.sizes else None]
        instructions = tuple(template.replace("{expression}", text) for text in texts)
        return Samples(grid, size_wh, image.clamp(-1, 1), instructions)

    def text_encoder(self, file: str) -> dict[str, Check]:
        """Compare the text encoder with the pipeline's own function."""
        spec = self.model.spec
        prompts = PromptEncoder(spec.prompt, self.model.tokenizer_json.encode())
        encoded = prompts.encode(_EXPRESSIONS[:1] if self.lean else _EXPRESSIONS)
        feeds = {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}
        instructions = [
            spec.prompt.template.replace("{expression}", text)
            for text in _EXPRESSIONS[: len(encoded.input_ids)]
        ]
        wanted = self.model.literal(self.precision).text(instructions).numpy()
        checks: dict[str, Check] = {}
        for name, got, limits in self._runs(file, [feeds]):
            error = difference(got["prompt_embeds"], wanted)
            worst(checks, name, "prompt_embeds", error, limits.output)
        return gate("text_encoder", checks)

    def vae_encoder(self, files: Mapping[tuple[int, int] | None, str]) -> dict[str, Check]:
        """Compare the VAE encoder with the pipeline's own functions; files by fixed size."""
        checks: dict[str, Check] = {}
        samples = self.samples()
        latents = self.model.literal(self.precision).vae_latents([s.image for s in samples])
        for sample, wanted in zip(samples, latents, strict=True):
            file = files[sample.size_wh if None not in files else None]
            for name, got, limits in self._runs(file, [{"image": sample.image.numpy()}]):
                error = difference(got["clean_latents"], wanted.numpy())
                worst(checks, name, "clean_latents", error, limits.output)
        return gate("vae_encoder", checks)

    def transformer(
        self,
        files: Mapping[tuple[int, int] | None, Mapping[str, str]],
        noise: npt.NDArray[np.float32],
        feature_site: str,
    ) -> Checks:
        """Compare each capture mode with the literal one: its outputs, its maps and its mask."""
        spec, literal = self.model.spec, self.model.literal(self.precision)
        samples = self.samples()
        latents = literal.vae_latents([sample.image for sample in samples])
        given = []
        for sample, clean in zip(samples, latents, strict=True):
            embeds = literal.text(sample.instructions)
            rng = np.random.default_rng(7)
            # Uneven weights: an output that ignored them would not pass.
            weights = rng.uniform(0.5, 1, embeds.shape[:2]).astype(np.float32)
            given.append(
                LiteralInputs(
                    clean_latents=clean.expand(len(embeds), -1, -1).contiguous(),
                    noise=torch.from_numpy(noise[None, : clean.shape[1]].copy()),
                    prompt_embeds=embeds,
                    prompt_weights=torch.from_numpy(weights),
                    grid_hw=sample.grid_hw,
                )
            )
        captures = literal.dit(given, spec.feature_block)
        checks: Checks = {}
        for sample, inputs, capture in zip(samples, given, captures, strict=True):
            vectors, matrices = capture.attention_vectors, capture.transition_matrices
            wanted = {
                "attention_vectors": vectors.numpy(),
                "transition_matrices": matrices.numpy(),
                "propagated_vectors": (matrices @ vectors.unsqueeze(-1))[..., 0].numpy(),
                "features": capture.features[feature_site].numpy(),
                "token_attention": capture.token_attention.numpy(),
            }
            for mode, file in files[sample.size_wh if None not in files else None].items():
                found = checks.setdefault(mode, {})
                feeds = _feeds(inputs, tau=spec.tau if mode == "scores" else None)
                for name, got, limits in self._runs(file, [feeds]):
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

    def _runs(self, file: str, feeds: Sequence[Arrays]) -> Iterator[tuple[str, Arrays, _Limits]]:
        """Run a graph in float32, and as it is where the CPU can: prefix, outputs, limits."""
        path = self.folder / file
        with _wide(path, self.precision) as wide:
            for each in feeds:
                yield "", run_graph(wide, each, lean=self.lean), _EXACT
        if self.precision.name == "fp16":
            for each in feeds:
                yield "fp16 ", run_graph(path, each, lean=self.lean), _ROUNDED

    def _masks(
        self,
        checks: dict[str, Check],
        prefix: str,
        sample: Samples,
        got: Arrays,
        wanted: Arrays,
        limits: _Limits,
    ) -> None:
        """Masks at twice the picture's size: share of pixels that differ from the literal's."""
        spec = self.model.spec
        size = (2 * sample.size_wh[0], 2 * sample.size_wh[1])
        view = Plan(size, sample.size_wh, (0, 0, *sample.size_wh), sample.grid_hw)
        for item in range(len(wanted["features"])):
            literal = method.segment_tokens(
                wanted["attention_vectors"][item],
                wanted["propagated_vectors"][item],
                wanted["features"][item],
                tau=spec.tau,
            )
            if "scores" in got:
                scores = got["scores"][item]
                # Min-max stretches rounding by one over the map's span.
                for name, value in (
                    ("scores", literal.scores),
                    ("coarse_attention", literal.coarse),
                    ("refined_attention", literal.refined),
                ):
                    worst(checks, prefix, name, difference(got[name][item], value), limits.map)
                fisher = np.array([literal.separability], np.float32)
                error = difference(got["separability"][item : item + 1], fisher)
                worst(checks, prefix, "separability", error, limits.map)
            else:
                propagated = got.get("propagated_vectors")
                if propagated is None:
                    propagated = method.propagate(
                        got["transition_matrices"], got["attention_vectors"]
                    )
                scores = method.segment_tokens(
                    got["attention_vectors"][item],
                    propagated[item],
                    got["features"][item],
                    tau=spec.tau,
                ).scores
            masks = [
                upsample(np.asarray(s).reshape(view.grid_hw), view) > 0
                for s in (scores, literal.scores)
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


def _sized(side: int, ratio: tuple[float, float], multiple: int) -> tuple[int, int]:
    scale = side / (ratio[0] * ratio[1]) ** 0.5
    width, height = (max(2, int(scale * part) // multiple) * multiple for part in ratio)
    return width, height


def _feeds(inputs: LiteralInputs, tau: float | None) -> Arrays:
    rows, columns = np.indices(inputs.grid_hw)
    feeds = {
        "clean_latents": inputs.clean_latents.numpy(),
        "noise": inputs.noise.numpy(),
        "prompt_embeds": inputs.prompt_embeds.numpy(),
        "prompt_weights": inputs.prompt_weights.numpy(),
        "positions": np.stack([rows, columns], -1).reshape(-1, 2).astype(np.float32),
    }
    return feeds if tau is None else feeds | {"tau": np.array([tau], np.float32)}


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
