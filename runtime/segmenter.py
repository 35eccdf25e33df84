"""From a bundle, an image and expressions to masks."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from pathlib import Path
from time import perf_counter
from typing import Unpack, overload

import numpy as np

from rism.runtime.arrays import Float32
from rism.runtime.bundle.reader import Bundle, resolve_bundle
from rism.runtime.engines.base import Engine
from rism.runtime.engines.cuda_device import Device
from rism.runtime.engines.device_engine import Mirrored, device_engine
from rism.runtime.engines.providers import parse_provider
from rism.runtime.engines.selection import EngineRequest, EngineSelection, start_first_available
from rism.runtime.engines.tensor_checks import fixed_batch
from rism.runtime.errors import InputError, one_line
from rism.runtime.expression.spatial_words import read_cues
from rism.runtime.image.loading import ImageSource
from rism.runtime.image_encoder import ImageEncoder, ImageState
from rism.runtime.method.attention_sinks import expect_token_attention, without_sinks
from rism.runtime.method.postprocess import ExpressionOutput, PostprocessRequest, postprocess_numpy
from rism.runtime.method.postprocess_cuda import CudaPostprocess, prepare
from rism.runtime.options import ResolvedOptions, SegmentOptions, resolve_options
from rism.runtime.prompt.embedder import PromptEmbedder, modulation_of
from rism.runtime.prompt.embedding_cache import EmbeddingCache
from rism.runtime.prompt.encoder import PromptEncoder, PromptState, check_template, expression_list
from rism.runtime.prompt.refiner import Refiner, refine
from rism.runtime.prompt.vision_encoder import open_vision_encoder
from rism.runtime.result.segmentation import Segmentation
from rism.runtime.transformer_inputs import batches, prompt_token_weights, transformer_feeds


class Segmenter:
    """Segments what expressions refer to in images. Make one, use it many times.

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
        precision: str | None = None,
        template: str | None = None,
        refiner: Refiner | None = None,
        cache: EmbeddingCache | None = None,
    ) -> None:
        """Take a bundle and its engines; `from_bundle` loads them.

        Args:
            bundle: an open bundle.
            engines: "text_encoder", "vae_encoder" and "transformer", on any engine, and
                "vision_encoder" and "modulation" if the bundle has them; with fixed sizes, the
                second and third for each size, as "transformer@512x512".
            capture: the capture mode of the transformer engine.
            max_batch: expressions per run of the transformer.
            provider_reason: why these engines were chosen.
            precision: of the transformer engine; None for the bundle's.
            template: see `from_bundle`.
            refiner: see `from_bundle`.
            cache: prompt embeddings on disk.
        """
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.capture = capture
        first = self.manifest.at_size("transformer", self.manifest.geometry.first_size)
        others = [engine.provider for engine in engines.values()]
        self.provider = "+".join(dict.fromkeys([engines[first].provider, *others]))
        self.precision = precision or self.manifest.precision.compute
        self.provider_reason = provider_reason
        self._engines = dict(engines)
        self._cuda: CudaPostprocess | None = None
        self._noise = Mirrored(bundle.noise())
        self._max_batch = max(1, max_batch)
        self._refiner = refiner
        self._images = ImageEncoder(bundle, self._engines, noise_shape=self._noise.shape)
        self._encoder = PromptEncoder(
            self.manifest.prompt, bundle.tokenizer_json(), template=template
        )
        self._vision_encoder = open_vision_encoder(self.manifest, self._encoder, engines)
        self._embedder = PromptEmbedder(
            self._encoder,
            engines["text_encoder"],
            max_batch=self._max_batch,
            fixed_batch=fixed_batch(self.manifest.graph("text_encoder").inputs, "input_ids"),
            disk=cache,
            vision_encoder=self._vision_encoder,
            modulation=modulation_of(self.manifest, engines),
        )

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
        template: str | None = None,
        refiner: Refiner | None = None,
        cache_dir: str | Path | None = None,
        warn: Callable[[str], None] | None = None,
        precision: str | None = None,
        engine: str | None = None,
        workers: int = 1,
        memory: str | int | None = None,
    ) -> "Segmenter":
        """Open a bundle and load its graphs.

        Args:
            path_or_name: a bundle folder, the name of a built-in bundle, the hub id of a bundle
                ("owner/name", "owner/name@revision"), or None for "mini".
            provider: "onnxruntime-cpu" or "cpu", "onnxruntime-cuda" or "cuda"; "tensorrt-rtx" or
                "tensorrt", which run engines that were built into the bundle;
                "onnxruntime-tensorrt-rtx" or "rtx", which compiles the bundle's graphs on this
                machine; one of these three with "+onnxruntime-cuda" for graphs that it does
                not have; or "auto" for the best that works. Results name it.
            device: number of the GPU.
            capture: "vectors", "matrices" or "scores"; None for the bundle's default.
            verify: compare the hashes of the bundle's files.
            threads: CPU threads; None for as many as this process may use.
            max_batch: expressions per run of the transformer; lower it to save memory.
            template: the instruction, with {expression} in it once; None for the bundle's.
            refiner: rewords each instruction by the image (see `Refiner`).
            cache_dir: a folder to keep prompt embeddings in (see `EmbeddingCache`); the text
                encoder, and the vision encoder if there is one, are then loaded only for
                instructions that are not there.
            warn: called with a line for each cached embedding that cannot be read or written.
            precision: one of `rism.runtime.names.ENGINE_PRECISIONS`, for an engine of it; None
                for any.
            engine: name of an engine variant of the bundle; None for the one that fits best.
            workers: threads that will call `segment` at once; they share `threads`.
            memory: a budget, such as "8GiB" or a number of bytes, of the whole process on the CPU
                and of the graphs on a GPU; "auto" for what is free; None for no budget. Where not
                all graphs fit into it, each is loaded when its turn comes, and one that is larger
                runs a few blocks at a time. "turns" has each leave when the next one comes,
                whatever is free. Results are the same bits; expressions run one by one,
                and on a GPU one thread at a time may use the segmenter.

        Raises:
            BundleError: no such bundle, or it is damaged.
            ProviderError: the provider cannot run here.
            InputError: no such capture mode, provider or engine, an unusable template, or a budget
                that is too little or more than there is.
            OutputError: `cache_dir` cannot be made.
        """
        if template is not None:
            check_template(template)
        parse_provider(provider)
        bundle = Bundle.open(resolve_bundle(path_or_name), verify=verify)
        mode = capture or bundle.manifest.default_capture
        if mode not in bundle.manifest.captures:
            raise InputError(
                f"capture is '{one_line(mode)}', this bundle has "
                f"{', '.join(bundle.manifest.captures)}: export again with --capture {mode}"
            )

        def start(
            selection: EngineSelection,
        ) -> tuple[EngineSelection, dict[str, Engine], EmbeddingCache | None]:
            cache = None
            if cache_dir is not None:
                # Before the engines are loaded, so that an unusable folder is reported at once.
                cache = EmbeddingCache(
                    cache_dir, bundle.manifest, provider=selection.text_by, warn=warn
                )
            engines = selection.load(lazy_text=cache is not None)
            prepare(engines, selection.bundle.manifest, mode)
            return selection, engines, cache

        request = EngineRequest(
            provider, device, threads, precision, engine, workers, memory, max_batch
        )
        selection, engines, cache = start_first_available(bundle, mode, request, start)
        return cls(
            selection.bundle,
            engines,
            capture=mode,
            max_batch=min(max_batch, selection.max_batch or max_batch),
            provider_reason=selection.reason,
            precision=selection.precision,
            template=template,
            refiner=refiner,
            cache=cache,
        )

    def with_engines(self, change: Callable[[str, Engine], Engine]) -> "Segmenter":
        """Return a segmenter that shares everything but the engines, each by name changed.

        The encoders of image and text stay as they are.
        """
        twin = copy(self)
        twin._engines = {name: change(name, engine) for name, engine in self._engines.items()}
        return twin

    @property
    def device(self) -> Device | None:
        """The GPU that holds the transformer's outputs; None on a CPU."""
        name = self.manifest.at_size("transformer", self.manifest.geometry.first_size)
        found = device_engine(self._engines[name])
        return None if found is None else found.device

    def set_image(self, image: ImageSource) -> ImageState:
        """Encode an image once, for any number of expressions.

        Args:
            image: whatever `load_image` reads. The same pixels are not encoded twice.

        Raises:
            InputError: not an image, or too large, too elongated or too small.
        """
        return self._images.encode(image)

    @overload
    def segment(
        self, image: ImageSource | ImageState, expressions: str, **options: Unpack[SegmentOptions]
    ) -> Segmentation: ...

    @overload
    def segment(
        self,
        image: ImageSource | ImageState,
        expressions: list[str] | tuple[str, ...],
        **options: Unpack[SegmentOptions],
    ) -> list[Segmentation]: ...

    def segment(
        self,
        image: ImageSource | ImageState,
        expressions: str | Sequence[str],
        **options: Unpack[SegmentOptions],
    ) -> Segmentation | list[Segmentation]:
        """Segment what each expression refers to.

        Args:
            image: whatever `load_image` reads, or a state from `set_image`.
            expressions: one, or several on the same image (run in batches, returned in order).
            options: see `SegmentOptions`.

        Returns:
            One `Segmentation` for one string, a list for a sequence.

        Raises:
            InputError: the image, an expression or an option cannot be used.
            ProviderError: the engine failed, for lack of memory for example.
        """
        texts = expression_list(expressions)
        resolved = resolve_options(options, self.manifest.method, self.capture)
        if resolved.sinks:
            first = self.manifest.geometry.first_size
            graph = self.manifest.graph(f"transformer.{self.capture}", first)
            expect_token_attention(graph, self.capture)
        instructions = [self._encoder.instruct(text) for text in texts]
        if not instructions:
            raise InputError("there are no expressions, expected at least one")
        shared_ms: dict[str, float] = {}
        state: ImageState | None = None
        if self._refiner is not None or self._vision_encoder is not None:
            state = self._state(image)
        if self._refiner is not None and state is not None:
            start = perf_counter()
            vision = self._vision_encoder
            tokens = 0 if vision is None else vision.image_tokens(state)
            instructions = refine(
                self._refiner, instructions, state.pixels, self._encoder, image_tokens=tokens
            )
            shared_ms["refine"] = (perf_counter() - start) * 1e3
        instructions = [self._encoder.append(each, resolved.magnets) for each in instructions]
        prompts, text_ms = self._embedder.embed(instructions, state)
        weights = prompt_token_weights(resolved.prompt_weights, prompts)
        state = state or self._state(image)
        shared_ms |= text_ms
        if not isinstance(image, ImageState):
            shared_ms |= state.timings_ms
        shared_ms = {stage: each / len(texts) for stage, each in shared_ms.items()}
        results: dict[int, Segmentation] = {}
        for rows in batches(prompts, self._fixed_batch(state) or self._max_batch):
            some = [prompts[row] for row in rows]
            own = weights[rows, : len(some[0].embeds)]
            found = self._segment_batch(state, some, own, resolved, shared_ms)
            results |= dict(zip(rows, found, strict=True))
        ordered = [results[row] for row in range(len(prompts))]
        return ordered[0] if isinstance(expressions, str) else ordered

    def _state(self, image: ImageSource | ImageState) -> ImageState:
        if not isinstance(image, ImageState):
            return self.set_image(image)
        if image.bundle_digest != self.bundle.digest:
            raise InputError(
                "the image state was made by another bundle: call set_image of this segmenter"
            )
        return image

    def _fixed_batch(self, state: ImageState) -> int | None:
        graph = self.manifest.graph(f"transformer.{self.capture}", state.plan.resized_wh)
        return fixed_batch(graph.inputs, "clean_latents")

    def _segment_batch(
        self,
        state: ImageState,
        prompts: Sequence[PromptState],
        weights: Float32,
        options: ResolvedOptions,
        shared_ms: Mapping[str, float],
    ) -> list[Segmentation]:
        """Segment a few expressions with one run of the transformer, or two with `sinks`."""
        start = perf_counter()
        outputs = self._run_transformer(state, prompts, weights, options)
        sinks: list[tuple[int, ...]] = [()] * len(prompts)
        if options.sinks:

            def run_again(rows: list[int], own: Float32) -> list[ExpressionOutput]:
                return self._run_transformer(state, [prompts[row] for row in rows], own, options)

            outputs, sinks = without_sinks(outputs, weights, run_again)
        took = (perf_counter() - start) * 1e3 - sum(o.method_ms + o.mask_ms for o in outputs)
        shared_ms = {**shared_ms, "transformer": took / len(prompts)}
        return [
            self._result(state, output, prompt, own_sinks, options, shared_ms)
            for output, prompt, own_sinks in zip(outputs, prompts, sinks, strict=True)
        ]

    def _run_transformer(
        self,
        state: ImageState,
        prompts: Sequence[PromptState],
        weights: Float32,
        options: ResolvedOptions,
    ) -> list[ExpressionOutput]:
        """Run the transformer once, and process its outputs on the device that holds them."""
        fixed = self._fixed_batch(state)
        engine = self._engines[self.manifest.at_size("transformer", state.plan.resized_wh)]
        on_device = device_engine(engine)
        feeds = transformer_feeds(
            state,
            prompts,
            rules=self.manifest.prompt,
            weights=weights,
            noise=self._noise,
            tau=options.tau,
            fixed=fixed,
            device=None if on_device is None else on_device.device,
        )
        request = PostprocessRequest(
            self.capture,
            fixed or len(prompts),
            state.plan,
            tuple(read_cues(prompt.instruction.expression) for prompt in prompts),
            options,
            state.guide() if options.upsample == "guided" else None,
        )
        if on_device is None:
            return postprocess_numpy(engine.run(feeds), request)
        with on_device.device.lock:
            if self._cuda is None:
                self._cuda = CudaPostprocess(on_device.device)
            finish = self._cuda.queue(on_device.run_on_device(feeds, borrow=True), request)
        return finish()

    def _result(
        self,
        state: ImageState,
        output: ExpressionOutput,
        prompt: PromptState,
        sinks: tuple[int, ...],
        options: ResolvedOptions,
        shared_ms: Mapping[str, float],
    ) -> Segmentation:
        found, seen, grid_hw = output.found, output.evidence, state.plan.grid_hw
        instruction, model = prompt.instruction, self.manifest.model
        outside, confidence, doubt = None, None, None
        if model.scope is not None:
            words = instruction.text[: instruction.length_without_magnets]
            outside = model.scope.unknown(instruction.expression, words)
        if self.manifest.method.confidence is not None and outside is None:
            confidence, doubt = self.manifest.method.confidence.judge(seen, options.confidence)
        reason = found.reason
        if reason is None and output.empty:
            reason = "no pixel is nearer to the expression"
        if not options.always:
            # The scope comes first: outside of it the other reasons mean nothing.
            reason = outside or reason or doubt
        score_map, mask_hw = found.scores.reshape(grid_hw), output.mask_hw
        if reason is not None:
            mask_hw = np.zeros_like(mask_hw)
        tokens, attention = prompt.tokens, output.token_attention
        if attention is not None:
            attention = attention[:, : len(tokens)].T.reshape(len(tokens), *grid_hw)
        return Segmentation(
            expression=instruction.expression,
            instruction=instruction.text,
            mask_hw=mask_hw,
            score_map=score_map,
            coarse=found.coarse.reshape(grid_hw),
            refined=found.refined.reshape(grid_hw),
            score=0.0 if reason is not None else float(score_map[score_map > 0].mean()),
            separability=seen.separability,
            concentration=seen.concentration,
            agreement=seen.agreement,
            confidence=confidence,
            reason=reason,
            provider=self.provider,
            precision=self.precision,
            model=model.name,
            timings_ms={**shared_ms, "method": output.method_ms, "mask": output.mask_ms},
            plan=state.plan,
            tokens=tokens if attention is not None else (),
            token_attention=attention,
            sinks=sinks,
            demonstrator=model.demonstrator,
            outside=outside,
        )
