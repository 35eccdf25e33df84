"""The parity gate: every graph against the PyTorch model, the modes against each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch

from rism.export.errors import ParityError
from rism.export.spec import LoadedModel
from rism.runtime import method
from rism.runtime.geometry import Plan, upsample
from rism.runtime.prompt import PromptEncoder

__all__ = ["Check", "Samples", "check_encoders", "check_transformer", "run_graph"]

Arrays = dict[str, npt.NDArray[Any]]

# Largest difference over the larger of 1 and the reference's largest value, in float32.
LIMIT = 2e-5
# A stray token at the very boundary may fall on either side of zero.
MASK_LIMIT = 1e-3
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
class Samples:
    """Inputs that the gate feeds to the graphs and to PyTorch."""

    grid_hw: tuple[int, int]
    size_wh: tuple[int, int]
    image: torch.Tensor  # (1, 3, h, w)
    instructions: tuple[str, ...]


def samples(model: LoadedModel) -> list[Samples]:
    """Smooth random pictures of three aspect ratios, a fraction of the model's own size."""
    geometry = model.spec.geometry
    side = min(geometry.size_level, 16 * geometry.token_px)
    found = []
    for index, (wide, high) in enumerate(_GRIDS):
        scale = side / (wide * high) ** 0.5
        width, height = (
            max(2, int(scale * part) // geometry.multiple_px) * geometry.multiple_px
            for part in (wide, high)
        )
        rng = np.random.default_rng(index)
        coarse = torch.from_numpy(rng.uniform(-1, 1, (1, 3, 6, 6)).astype(np.float32))
        image = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
        grid = (height // geometry.token_px, width // geometry.token_px)
        instructions = tuple(
            model.spec.prompt.template.replace("{expression}", text) for text in _EXPRESSIONS
        )
        found.append(Samples(grid, (width, height), image.clamp(-1, 1), instructions))
    return found


def run_graph(path: Path, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    """Run a graph on the CPU; outputs by name."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def difference(got: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    """Largest absolute difference over the larger of 1 and the largest reference value."""
    if got.shape != wanted.shape:
        return float("inf")
    if not np.isfinite(got).all():
        return float("nan")
    return float(np.abs(got - wanted).max() / max(1.0, float(np.abs(wanted).max())))


def worst(checks: dict[str, Check], name: str, error: float, limit: float = LIMIT) -> None:
    """Keep the larger error under `name`; NaN is worse than any number."""
    error = math.inf if math.isnan(error) else error
    checks[name] = Check(max(error, checks.get(name, Check(0.0, limit)).error), limit)


def gate(graph: str, checks: Mapping[str, Check]) -> None:
    """Raise if any check failed."""
    for name, check in checks.items():
        if not check.passed:
            raise ParityError(
                f"{graph}: output '{name}' differs from the PyTorch model by {check.error:.2e}, "
                f"expected at most {check.limit:.0e}: no bundle was written"
            )


def check_encoders(model: LoadedModel, folder: Path) -> dict[str, dict[str, Check]]:
    """Compare the text encoder and the VAE encoder with the pipeline's own functions."""
    prompts = PromptEncoder(model.spec.prompt, model.tokenizer_json.encode())
    text: dict[str, Check] = {}
    encoded = prompts.encode(_EXPRESSIONS)
    feeds = {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}
    got = run_graph(folder / "text_encoder.onnx", feeds)
    for row, instruction in zip(got["prompt_embeds"], samples(model)[0].instructions, strict=True):
        wanted = model.reference_text(instruction)[0].numpy()
        worst(text, "prompt_embeds", difference(row, wanted))
    vae: dict[str, Check] = {}
    for sample in samples(model):
        out = run_graph(folder / "vae_encoder.onnx", {"image": sample.image.numpy()})
        wanted = model.reference_vae(sample.image).numpy()
        worst(vae, "clean_latents", difference(out["clean_latents"], wanted))
    gate("text_encoder", text)
    gate("vae_encoder", vae)
    return {"text_encoder": text, "vae_encoder": vae}


def check_transformer(
    model: LoadedModel, folder: Path, *, modes: tuple[str, ...], feature_site: str
) -> dict[str, dict[str, Check]]:
    """Compare each capture mode with the literal one: its outputs, its maps and its mask."""
    checks: dict[str, dict[str, Check]] = {mode: {} for mode in modes}
    spec = model.spec
    noise = np.fromfile(folder / "noise.f32", "<f4").reshape(-1, spec.latent_channels)
    for sample in samples(model):
        feeds = _feeds(model, sample, noise)
        literal = model.reference_dit(
            clean_latents=torch.from_numpy(feeds["clean_latents"]),
            noise=torch.from_numpy(feeds["noise"]),
            prompt_embeds=torch.from_numpy(feeds["prompt_embeds"]),
            grid_hw=sample.grid_hw,
            prompt_weights=torch.from_numpy(feeds["prompt_weights"]),
        )
        vectors, matrices = literal.attention_vectors, literal.transition_matrices
        wanted = {
            "attention_vectors": vectors.numpy(),
            "transition_matrices": matrices.numpy(),
            "propagated_vectors": (matrices @ vectors.unsqueeze(-1))[..., 0].numpy(),
            "features": literal.features[feature_site].numpy(),
            "token_attention": literal.token_attention.numpy(),
        }
        for mode in modes:
            mode_feeds = dict(feeds)
            if mode == "scores":
                mode_feeds["tau"] = np.array([spec.tau], np.float32)
            got = run_graph(folder / f"transformer.{mode}.onnx", mode_feeds)
            for name in [name for name in got if name in wanted]:
                worst(checks[mode], name, difference(got[name], wanted[name]))
            _check_masks(checks[mode], model, sample, got, wanted)
            for name in got:
                # An output that nothing was compared with has not passed.
                checks[mode].setdefault(name, Check(math.inf, LIMIT))
    for mode, found in checks.items():
        gate(f"transformer.{mode}", found)
    return {f"transformer.{mode}": found for mode, found in checks.items()}


def _feeds(model: LoadedModel, sample: Samples, noise: npt.NDArray[np.float32]) -> Arrays:
    embeds = torch.cat([model.reference_text(text) for text in sample.instructions])
    clean = model.reference_vae(sample.image)
    count, tokens = len(embeds), clean.shape[1]
    rows, columns = np.indices(sample.grid_hw)
    rng = np.random.default_rng(7)
    return {
        "clean_latents": clean.expand(count, -1, -1).contiguous().numpy(),
        "noise": noise[None, :tokens],
        "prompt_embeds": embeds.numpy(),
        # Uneven weights: an output that ignored them would not pass.
        "prompt_weights": rng.uniform(0.5, 1, embeds.shape[:2]).astype(np.float32),
        "positions": np.stack([rows, columns], -1).reshape(-1, 2).astype(np.float32),
    }


def _check_masks(
    checks: dict[str, Check], model: LoadedModel, sample: Samples, got: Arrays, wanted: Arrays
) -> None:
    """Masks at twice the picture's size: share of pixels that differ from the literal one's."""
    spec = model.spec
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
            for name, value in (
                ("scores", literal.scores),
                ("coarse_attention", literal.coarse),
                ("refined_attention", literal.refined),
            ):
                # Min-max stretches rounding by one over the map's span.
                worst(checks, name, difference(got[name][item], value), 50 * LIMIT)
            fisher = difference(
                got["separability"][item : item + 1], np.array([literal.separability], np.float32)
            )
            worst(checks, "separability", fisher, 50 * LIMIT)
        else:
            propagated = got.get("propagated_vectors")
            if propagated is None:
                propagated = method.propagate(got["transition_matrices"], got["attention_vectors"])
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
        worst(checks, "mask", float((masks[0] != masks[1]).mean()), MASK_LIMIT)
