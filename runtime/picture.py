"""From a picture to clean latents, which any number of expressions share."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rism.runtime import geometry
from rism.runtime.bundle import Bundle
from rism.runtime.cache import LruCache
from rism.runtime.capture import expect_shape
from rism.runtime.engines import Engine
from rism.runtime.images import ImageSource, load_image

__all__ = ["ImageState", "PictureEncoder"]

Float32: TypeAlias = npt.NDArray[np.float32]
Uint8: TypeAlias = npt.NDArray[np.uint8]

IMAGES_KEPT = 8


@dataclass(frozen=True, eq=False)
class ImageState:
    """A picture as the model sees it; reusable for any number of expressions.

    Attributes:
        plan: how the picture was brought to the model's grid.
        clean_latents: (1, N_v, C) float32.
        bundle_digest: the bundle that it belongs to.
        timings_ms: what preparing it took: "image" (decode, resize) and "vae".
        pixels: (H, W, 3) uint8, read-only, where a refiner is to see them; otherwise None, so
            that a state keeps no picture in memory.
    """

    plan: geometry.Plan
    clean_latents: Float32
    bundle_digest: str
    timings_ms: Mapping[str, float]
    pixels: Uint8 | None = None


class PictureEncoder:
    """Reads and resizes pictures, and encodes those that were not seen before."""

    def __init__(
        self,
        bundle: Bundle,
        engines: Mapping[str, Engine],
        *,
        noise_shape: tuple[int, ...],
        keep_pixels: bool,
    ) -> None:
        """Put a bundle's rules and its VAE encoder together.

        Args:
            bundle: an open bundle.
            engines: those of `load_engines`.
            noise_shape: (rows, channels): how many tokens there may be, and their channels.
            keep_pixels: whether states carry their pixels.
        """
        self._bundle = bundle
        self._engines = engines
        self._noise_shape = noise_shape
        self._keep_pixels = keep_pixels
        self._kept: LruCache[Float32] = LruCache(IMAGES_KEPT)

    def encode(self, image: ImageSource) -> ImageState:
        """Bring a picture to the model; the same pixels seen again are not encoded again.

        Raises:
            InputError: not a picture, too large, too long or too small.
            ProviderError: the VAE encoder failed.
        """
        start = perf_counter()
        pixels = load_image(image)
        size_wh = (pixels.shape[1], pixels.shape[0])
        manifest = self._bundle.manifest
        plan = geometry.plan(size_wh, manifest.geometry, max_tokens=self._noise_shape[0])
        key = hashlib.sha256(pixels.data, usedforsecurity=False).hexdigest() + f"{size_wh}"
        latents = self._kept.get(key)
        loaded = perf_counter()
        if latents is None:
            model_image = geometry.to_model(pixels, plan, manifest.geometry)
            loaded = perf_counter()
            engine = self._engines[manifest.at_size("vae_encoder", plan.resized_wh)]
            latents = engine.run({"image": model_image})["clean_latents"]
            latents = latents.astype(np.float32, copy=False)
            expect_shape(latents, (1, plan.tokens, self._noise_shape[1]), name="clean_latents")
            latents.flags.writeable = False  # shared between states from here on
            self._kept.put(key, latents)
        done = perf_counter()
        timings = {"image": (loaded - start) * 1e3, "vae": (done - loaded) * 1e3}
        return ImageState(plan, latents, self._bundle.digest, timings, self._shown(pixels, image))

    def _shown(self, pixels: Uint8, image: ImageSource) -> Uint8 | None:
        """Return what a refiner is shown, which nobody changes under it or through it."""
        if not self._keep_pixels:
            return None
        shown = pixels.copy() if isinstance(image, np.ndarray) else pixels.view()
        shown.flags.writeable = False
        return shown
