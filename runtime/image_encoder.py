"""From an image to what its expressions share: clean latents, and the text encoder's view."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from rism.runtime.arrays import Float32, Uint8
from rism.runtime.bundle.manifest import Geometry
from rism.runtime.bundle.prompt_spec import VisionRules
from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines.base import Engine
from rism.runtime.engines.device_engine import Mirrored, run_in_place
from rism.runtime.engines.tensor_checks import expect_shape
from rism.runtime.errors import InputError
from rism.runtime.image import geometry, vision_patches
from rism.runtime.image.loading import ImageSource, load_image
from rism.runtime.lru_cache import LruCache

IMAGES_KEPT = 8


@dataclass(frozen=True, eq=False, repr=False)
class ImageState:
    """An encoded image; reusable for any number of expressions.

    Attributes:
        plan: how the image was brought to the model's grid.
        latents: (1, N_v, C) float32, on the GPU if they were computed there.
        bundle_digest: digest of the bundle that encoded it.
        timings_ms: durations of its preparation: "image" (decode, resize) and "vae".
        pixels: (H, W, 3) uint8, read-only, for guided masks and for refiners; None in a state
            that was made without.
        view: the image for a text encoder with vision; otherwise None.
    """

    plan: geometry.Plan
    latents: Float32 | Mirrored
    bundle_digest: str
    timings_ms: Mapping[str, float]
    pixels: Uint8 | None = None
    view: vision_patches.View | None = None

    def __repr__(self) -> str:
        (width, height), (rows, columns) = self.plan.size_wh, self.plan.grid_hw
        return f"ImageState({width}x{height}, {rows}x{columns} tokens)"

    @property
    def clean_latents(self) -> Float32:
        """(1, N_v, C) float32 on the host; read-only."""
        return np.asarray(self.latents)

    def guide(self) -> Uint8:
        """Return the pixels for the guided filter, (H, W, 3).

        Raises:
            InputError: the state was made without.
        """
        if self.pixels is None:
            raise InputError(
                "the image state has no pixels for a guided mask, expected one made by this "
                "segmenter: call its set_image, or use upsample 'bilinear'"
            )
        return self.pixels


@dataclass(frozen=True, eq=False)
class _Encoded:
    latents: Float32 | Mirrored
    view: vision_patches.View | None

    @property
    def nbytes(self) -> int:
        return self.latents.nbytes + (0 if self.view is None else self.view.image_hwc.nbytes)


class ImageEncoder:
    """Reads and resizes images, and encodes those that are not in its cache."""

    def __init__(
        self,
        bundle: Bundle,
        engines: Mapping[str, Engine],
        *,
        noise_shape: tuple[int, ...],
        keep_pixels: bool = True,
    ) -> None:
        """Take a bundle and the engines of `EngineSelection.load`.

        `noise_shape` is the maximum of tokens, and their channels.
        """
        self._bundle = bundle
        self._engines = engines
        self._noise_shape = noise_shape
        self._keep_pixels = keep_pixels
        self._cache: LruCache[_Encoded] = LruCache(IMAGES_KEPT)

    def encode(self, image: ImageSource) -> ImageState:
        """Encode an image, or take it from the cache if the same pixels were encoded before.

        Raises:
            InputError: not an image, or too large, too elongated or too small.
            ProviderError: the VAE encoder failed.
        """
        start = perf_counter()
        pixels = load_image(image)
        size_wh = (pixels.shape[1], pixels.shape[0])
        manifest, digest = self._bundle.manifest, self._bundle.digest
        plan = geometry.plan(size_wh, manifest.geometry, max_tokens=self._noise_shape[0])
        key = hashlib.sha256(pixels.data, usedforsecurity=False).hexdigest() + f"{size_wh}"
        encoded = self._cache.get(key)
        loaded = perf_counter()
        if encoded is None:
            resized = geometry.resize(pixels, plan, manifest.geometry)
            view = None
            if manifest.prompt.vision is not None:
                own, vision = manifest.geometry, manifest.prompt.vision
                view = text_encoder_view(pixels, resized, plan, own, vision)
            loaded = perf_counter()
            encoded = _Encoded(self._latents(resized, plan), view)
            self._cache.put(key, encoded)
        timings = {"image": (loaded - start) * 1e3, "vae": (perf_counter() - loaded) * 1e3}
        shown = _read_only(pixels, image) if self._keep_pixels else None
        return ImageState(plan, encoded.latents, digest, timings, shown, encoded.view)

    def _latents(self, resized: geometry.Resized, plan: geometry.Plan) -> Float32 | Mirrored:
        manifest = self._bundle.manifest
        engine = self._engines[manifest.at_size("vae_encoder", plan.resized_wh)]
        image = geometry.normalise(resized, plan, manifest.geometry)
        latents = run_in_place(engine, {"image": image}, "clean_latents")
        expect_shape(latents, (1, plan.tokens, self._noise_shape[1]), name="clean_latents")
        if isinstance(latents, np.ndarray):
            latents.flags.writeable = False  # states share them
        return latents


def text_encoder_view(
    pixels_hwc: Uint8,
    resized_hwc: geometry.Resized,
    plan: geometry.Plan,
    rules: Geometry,
    vision: VisionRules,
) -> vision_patches.View:
    """Return the part of an image that the model sees, at the size for a text encoder with vision.

    `resized_hwc` is the image after `geometry.resize` by the plan and the model's rules.
    """
    if rules.resample != vision.view_resample or resized_hwc.dtype != np.uint8:
        rules = replace(rules, resample=vision.view_resample, resize_in="uint8")
        resized_hwc = geometry.resize(pixels_hwc, plan, rules)
    left, top, right, bottom = plan.crop_xyxy
    part = np.ascontiguousarray(resized_hwc[top:bottom, left:right], np.uint8)
    return vision_patches.view(part, (right - left, bottom - top), vision)


def _read_only(pixels: Uint8, image: ImageSource) -> Uint8:
    """Return pixels that nobody can change, copied if they are in an array of the caller's."""
    shared = isinstance(image, np.ndarray) and image.flags.writeable
    shown = pixels.copy() if shared else pixels.view()
    shown.flags.writeable = False
    return shown
