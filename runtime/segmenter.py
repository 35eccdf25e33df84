"""From a bundle, a picture and expressions to masks."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TypeAlias, overload

import numpy as np
import numpy.typing as npt

from rism.runtime import geometry
from rism.runtime.bundle import Bundle, resolve_bundle
from rism.runtime.cache import LruCache
from rism.runtime.capture import expect_shape, fixed_batch, localise_outputs
from rism.runtime.engines import Arrays, Engine, choose_provider, load_engines
from rism.runtime.errors import InputError, ProviderError, one_line
from rism.runtime.images import ImageSource, load_image
from rism.runtime.manifest import PROTOTYPES
from rism.runtime.prompt import PromptEncoder, PromptState, PromptWeights, clean_expression, weigh
from rism.runtime.result import Segmentation

__all__ = ["ImageState", "Segmenter"]

Float32: TypeAlias = npt.NDArray[np.float32]

IMAGES_KEPT = 8
EXPRESSIONS_KEPT = 256


@dataclass(frozen=True, eq=False)
class ImageState:
    """A picture as the model sees it; reusable for any number of expressions.

    Attributes:
        plan: how the picture was brought to the model's grid.
        clean_latents: (1, N_v, C) float32.
        bundle_digest: the bundle that it belongs to.
        timings_ms: what preparing it took: "image" (decode, resize) and "vae".
    """

    plan: geometry.Plan
    clean_latents: Float32
    bundle_digest: str
    timings_ms: Mapping[str, float]


@dataclass(frozen=True)
class _Options:
    tau: float
    prototype: str


class Segmenter:
    """Segments what expressions refer to in pictures. Make one, use it many times.

    >>> segmenter = Segmenter.from_bundle()
    >>> result = segmenter.segment("street.jpg", "the green van")
    >>> result.mask.shape, result.box_xyxy
    """

    def __init__(
        self,
        bundle: Bundle,
        engines: Mapping[str, Engine],
        *,
        capture: str,
        max_batch: int = 8,
        provider_reason: str = "",
    ) -> None:
        """Put a bundle and its engines together; `from_bundle` does it for onnxruntime.

        Args:
            bundle: an open bundle.
            engines: "text_encoder", "vae_encoder" and "transformer", by any engine.
            capture: which of the bundle's capture modes the transformer engine is.
            max_batch: expressions per run of the transformer.
            provider_reason: why these engines were chosen.
        """
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.capture = capture
        self.provider = engines["transformer"].provider
        self.provider_reason = provider_reason
        self._engines = dict(engines)
        self._encoder = PromptEncoder(self.manifest.prompt, bundle.tokenizer_json())
        self._noise = bundle.noise()
        inputs = self.manifest.graphs[f"transformer.{capture}"].inputs
        self._max_batch = max(1, min(max_batch, fixed_batch(inputs, "clean_latents")))
        self._images: LruCache[Float32] = LruCache(IMAGES_KEPT)
        self._prompts: LruCache[PromptState] = LruCache(EXPRESSIONS_KEPT)

    @classmethod
    def from_bundle(
        cls,
        path_or_name: str | Path | None = None,
        *,
        provider: str = "auto",
        device: int = 0,
        capture: str | None = None,
        verify: bool = True,
        threads: int | None = None,
        max_batch: int = 8,
    ) -> "Segmenter":
        """Open a bundle and load its graphs into onnxruntime.

        Args:
            path_or_name: a bundle folder, the name of a built-in bundle, or None for "mini".
            provider: "cpu", "cuda", or "auto" to take CUDA where it works; results name it.
            device: CUDA device number.
            capture: "vectors", "matrices" or "scores"; None for the bundle's default.
            verify: compare the hashes of the bundle's files.
            threads: CPU threads; None for as many as this process may use.
            max_batch: expressions per run of the transformer; lower it to save memory.

        Raises:
            BundleError: no such bundle, or it is damaged.
            ProviderError: the provider cannot run here.
            InputError: no such capture mode or provider.
        """
        chosen, why = choose_provider(provider)
        bundle = Bundle.open(resolve_bundle(path_or_name), verify=verify)
        mode = capture or bundle.manifest.default_capture
        if mode not in bundle.manifest.captures:
            raise InputError(
                f"capture is '{one_line(mode)}', this bundle has "
                f"{', '.join(bundle.manifest.captures)}: export again with --capture {mode}"
            )
        try:
            engines = load_engines(bundle, mode, provider=chosen, device=device, threads=threads)
        except ProviderError as error:
            if provider != "auto" or chosen == "cpu":
                raise
            why = f"auto: CUDA did not start ({error})"
            engines = load_engines(bundle, mode, provider="cpu", threads=threads)
        return cls(bundle, engines, capture=mode, max_batch=max_batch, provider_reason=why)

    def set_image(self, image: ImageSource) -> ImageState:
        """Bring a picture to the model once, for any number of expressions.

        Args:
            image: whatever `load_image` reads. The same pixels seen again are not encoded again.

        Raises:
            InputError: not a picture, too large, too long or too small.
        """
        start = perf_counter()
        pixels = load_image(image)
        size_wh = (pixels.shape[1], pixels.shape[0])
        rules = self.manifest.geometry
        plan = geometry.plan(size_wh, rules, max_tokens=self._noise.shape[0])
        key = hashlib.sha256(pixels.data, usedforsecurity=False).hexdigest() + f"{size_wh}"
        latents = self._images.get(key)
        loaded = perf_counter()
        if latents is None:
            model_image = geometry.to_model(pixels, plan, rules)
            loaded = perf_counter()
            latents = self._engines["vae_encoder"].run({"image": model_image})["clean_latents"]
            latents = latents.astype(np.float32, copy=False)
            expect_shape(latents, (1, plan.tokens, self._noise.shape[1]), name="clean_latents")
            latents.flags.writeable = False  # shared between states from here on
            self._images.put(key, latents)
        done = perf_counter()
        timings = {"image": (loaded - start) * 1e3, "vae": (done - loaded) * 1e3}
        return ImageState(plan, latents, self.bundle.digest, timings)

    @overload
    def segment(
        self,
        image: ImageSource | ImageState,
        expressions: str,
        *,
        tau: float | None = None,
        prompt_weights: PromptWeights = None,
        prototype: str | None = None,
    ) -> Segmentation: ...

    @overload
    def segment(
        self,
        image: ImageSource | ImageState,
        expressions: list[str] | tuple[str, ...],
        *,
        tau: float | None = None,
        prompt_weights: PromptWeights = None,
        prototype: str | None = None,
    ) -> list[Segmentation]: ...

    def segment(
        self,
        image: ImageSource | ImageState,
        expressions: str | Sequence[str],
        *,
        tau: float | None = None,
        prompt_weights: PromptWeights = None,
        prototype: str | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Segment what each expression refers to.

        Args:
            image: whatever `load_image` reads, or a state from `set_image`.
            expressions: one, or several on the same picture (answered in order, batched).
            tau: region threshold on the refined map, 0 to below 1; None for the bundle's.
            prompt_weights: w of a_l = A w: None or "all" for the paper's ones, "text"
                for no padding, "expression" for the expression's own tokens, or an array (N_p,)
                or (B, N_p).
            prototype: "equation" or "cosine"; None for the bundle's.

        Returns:
            One `Segmentation` for one string, a list for a sequence.

        Raises:
            InputError: the picture, an expression or an option cannot be used.
            ProviderError: the engine failed, for lack of memory for example.
        """
        single = isinstance(expressions, str)
        asked = [expressions] if isinstance(expressions, str) else list(expressions)
        options = self._options(tau, prototype)
        texts = [clean_expression(text) for text in asked]
        if not texts:
            raise InputError("there are no expressions, expected at least one")
        start = perf_counter()
        prompts = self._encode(texts)
        text_ms = (perf_counter() - start) * 1e3
        weights = weigh(prompt_weights, prompts)
        fresh = not isinstance(image, ImageState)
        state = self._state(image)
        shared = {"text": text_ms / len(texts)}
        if fresh:
            shared |= {k: v / len(texts) for k, v in state.timings_ms.items()}
        results: list[Segmentation] = []
        for first in range(0, len(texts), self._max_batch):
            rows = slice(first, first + self._max_batch)
            results += self._batch(
                state,
                texts[rows],
                prompts[rows],
                weights=weights[rows],
                options=options,
                shared_ms=shared,
            )
        return results[0] if single else results

    def _batch(
        self,
        state: ImageState,
        texts: Sequence[str],
        prompts: Sequence[PromptState],
        *,
        weights: Float32,
        options: _Options,
        shared_ms: Mapping[str, float],
    ) -> list[Segmentation]:
        """Run the transformer once for a few expressions and finish each."""
        start = perf_counter()
        outputs = self._transform(state, prompts, weights, options.tau)
        each = (perf_counter() - start) * 1e3 / len(texts)
        results = []
        for row, text in enumerate(texts):
            result = self._finish(
                state,
                {name: array[row] for name, array in outputs.items()},
                text=text,
                tokens=prompts[row].tokens,
                options=options,
                timings={**shared_ms, "transformer": each},
            )
            results.append(result)
        return results

    def _state(self, image: ImageSource | ImageState) -> ImageState:
        if not isinstance(image, ImageState):
            return self.set_image(image)
        if image.bundle_digest != self.bundle.digest:
            raise InputError(
                "the image state was made by another bundle: call set_image of this segmenter"
            )
        return image

    def _options(self, tau: float | None, prototype: str | None) -> _Options:
        method = self.manifest.method
        tau = method.tau if tau is None else tau
        if not 0.0 <= tau < 1.0:
            raise InputError(f"tau is {tau}, expected a number from 0 to below 1, such as 0.8")
        prototype = prototype or method.prototype
        if prototype not in PROTOTYPES:
            raise InputError(
                f"prototype is '{one_line(prototype)}', expected {' or '.join(PROTOTYPES)}"
            )
        if self.capture == "scores" and prototype != method.prototype:
            raise InputError(
                f"prototype '{prototype}' cannot be asked of capture 'scores', whose graph holds "
                f"'{method.prototype}': use capture 'vectors'"
            )
        return _Options(tau, prototype)

    def _encode(self, texts: Sequence[str]) -> list[PromptState]:
        """Encode the expressions that are not cached, in batches, and return all in order."""
        found: dict[str, PromptState | None] = {text: self._prompts.get(text) for text in texts}
        missing = [text for text, prompt in found.items() if prompt is None]
        # Refuse before running anything: the last of fifty expressions may be the wrong one.
        encoded = self._encoder.encode(missing)
        batch = fixed_batch(self.manifest.graphs["text_encoder"].inputs, "input_ids")
        for first in range(0, len(missing), min(batch, self._max_batch)):
            rows = slice(first, first + min(batch, self._max_batch))
            embeds = self._engines["text_encoder"].run(
                {
                    "input_ids": encoded.input_ids[rows],
                    "attention_mask": encoded.attention_mask[rows],
                }
            )["prompt_embeds"]
            for row, text in enumerate(missing[rows]):
                state = PromptState(
                    embeds[row].astype(np.float32),
                    encoded.attention_mask[first + row],
                    encoded.expression_mask[first + row],
                    encoded.tokens[first + row],
                )
                found[text] = state
                self._prompts.put(text, state)
        return [prompt for text in texts if (prompt := found[text]) is not None]

    def _transform(
        self, state: ImageState, prompts: Sequence[PromptState], weights: Float32, tau: float
    ) -> Arrays:
        batch, tokens = len(prompts), state.plan.tokens
        outputs = self._engines["transformer"].run(
            {
                "clean_latents": np.repeat(state.clean_latents, batch, axis=0),
                "noise": self._noise[None, :tokens],
                "prompt_embeds": np.stack([prompt.embeds for prompt in prompts]),
                "prompt_weights": weights,
                "positions": geometry.positions(state.plan.grid_hw),
                "tau": np.array([tau], np.float32),
            }
        )
        name = "scores" if self.capture == "scores" else "features"
        expect_shape(outputs[name], (batch, tokens, *outputs[name].shape[2:]), name=name)
        return {key: value.astype(np.float32, copy=False) for key, value in outputs.items()}

    def _finish(
        self,
        state: ImageState,
        outputs: Arrays,
        *,
        text: str,
        tokens: tuple[str, ...],
        options: _Options,
        timings: dict[str, float],
    ) -> Segmentation:
        start = perf_counter()
        found = localise_outputs(
            self.capture, outputs, tau=options.tau, prototype=options.prototype
        )
        grid_hw = state.plan.grid_hw
        score_map = found.scores.reshape(grid_hw)
        after_method = perf_counter()
        mask_hw = geometry.upsample(score_map, state.plan) > 0
        timings["method"] = (after_method - start) * 1e3
        timings["mask"] = (perf_counter() - after_method) * 1e3
        empty = not mask_hw.any()
        reason = found.reason or ("no pixel is nearer to the expression" if empty else None)
        attention = outputs.get("token_attention")
        if attention is not None:
            attention = attention[:, : len(tokens)].T.reshape(len(tokens), *grid_hw)
        return Segmentation(
            expression=text,
            mask_hw=mask_hw,
            score_map=score_map,
            coarse=found.coarse.reshape(grid_hw),
            refined=found.refined.reshape(grid_hw),
            score=0.0 if empty else float(score_map[score_map > 0].mean()),
            separability=found.separability,
            reason=reason,
            provider=self.provider,
            precision=self.manifest.precision.compute,
            model=self.manifest.model.name,
            timings_ms=timings,
            plan=state.plan,
            tokens=tokens if attention is not None else (),
            token_attention=attention,
        )
