"""From a picture to what any number of expressions share: clean latents, and the text's view."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rism.runtime.bundle.reader import Bundle
from rism.runtime.bundle.scope import flatness
from rism.runtime.engines.base import Engine
from rism.runtime.engines.device_engine import Mirrored, run_in_place
from rism.runtime.engines.tensor_checks import expect_shape
from rism.runtime.errors import InputError
from rism.runtime.image import geometry, vision_patches
from rism.runtime.image.loading import ImageSource, load_image
from rism.runtime.lru_cache import LruCache

__all__ = ["ImageEncoder", "ImageState"]

Float32: TypeAlias = npt.NDArray[np.float32]
Uint8: TypeAlias = npt.NDArray[np.uint8]

IMAGES_KEPT = 8


@dataclass(frozen=True, eq=False, repr=False)
class ImageState:
    """A picture as the model sees it; reusable for any number of expressions.

    Attributes:
        plan: how the picture was brought to the model's grid.
        latents: (1, N_v, C) float32, on the GPU where they were made on one.
        bundle_digest: the bundle that it belongs to.
        timings_ms: what preparing it took: "image" (decode, resize) and "vae".
        pixels: (H, W, 3) uint8, read-only: contours are drawn along its edges, a refiner sees
            it. None in a state that was made without.
        view: what the text encoder sees, where it looks at the picture; otherwise None.
        unlike: why this is no picture for a demonstrator; None where it is, and for other models.
    """

    plan: geometry.Plan
    latents: Float32 | Mirrored
    bundle_digest: str
    timings_ms: Mapping[str, float]
    pixels: Uint8 | None = None
    view: vision_patches.View | None = None
    unlike: str | None = None

    def __repr__(self) -> str:
        (width, height), (rows, columns) = self.plan.size_wh, self.plan.grid_hw
        return f"ImageState({width}x{height}, {rows}x{columns} tokens)"

    @property
    def clean_latents(self) -> Float32:
        """(1, N_v, C) float32, the host's; read-only."""
        return np.asarray(self.latents)

    def guide(self) -> Uint8:
        """Return the pixels that contours are drawn along, (H, W, 3).

        Raises:
            InputError: the state was made without.
        """
        if self.pixels is None:
            raise InputError(
                "the image state has no pixels to draw contours along, expected one made by this "
                "segmenter: call its set_image, or ask for upsample 'bilinear'"
            )
        return self.pixels


@dataclass(frozen=True, eq=False)
class _Encoded:
    latents: Float32 | Mirrored
    view: vision_patches.View | None
    unlike: str | None

    @property
    def nbytes(self) -> int:
        return self.latents.nbytes + (0 if self.view is None else self.view.image_hwc.nbytes)


class ImageEncoder:
    """Reads and resizes pictures, and encodes those that were not seen before."""

    def __init__(
        self,
        bundle: Bundle,
        engines: Mapping[str, Engine],
        *,
        noise_shape: tuple[int, ...],
        keep_pixels: bool = True,
    ) -> None:
        """Put a bundle's rules and its VAE encoder together.

        Args:
            bundle: an open bundle.
            engines: those of `EngineSelection.load`.
            noise_shape: (rows, channels): how many tokens there may be, and their channels.
            keep_pixels: whether states carry their pixels.
        """
        self._bundle = bundle
        self._engines = engines
        self._noise_shape = noise_shape
        self._keep_pixels = keep_pixels
        self._kept: LruCache[_Encoded] = LruCache(IMAGES_KEPT)

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
        kept = self._kept.get(key)
        loaded = perf_counter()
        if kept is None:
            resized = geometry.resize(pixels, plan, manifest.geometry)
            view = self._view(pixels, resized, plan)
            scope = manifest.model.scope
            unlike = None if scope is None else scope.unlike(flatness(resized))
            loaded = perf_counter()
            kept = _Encoded(self._latents(resized, plan), view, unlike)
            self._kept.put(key, kept)
        done = perf_counter()
        timings = {"image": (loaded - start) * 1e3, "vae": (done - loaded) * 1e3}
        shown, digest = _shown(pixels, image) if self._keep_pixels else None, self._bundle.digest
        return ImageState(plan, kept.latents, digest, timings, shown, kept.view, kept.unlike)

    def _latents(self, resized: geometry.Resized, plan: geometry.Plan) -> Float32 | Mirrored:
        manifest = self._bundle.manifest
        engine = self._engines[manifest.at_size("vae_encoder", plan.resized_wh)]
        image = geometry.normalise(resized, plan, manifest.geometry)
        latents = run_in_place(engine, {"image": image}, "clean_latents")
        expect_shape(latents, (1, plan.tokens, self._noise_shape[1]), name="clean_latents")
        if isinstance(latents, np.ndarray):
            latents.flags.writeable = False  # shared between states from here on
        return latents

    def _view(
        self, pixels: Uint8, resized: geometry.Resized, plan: geometry.Plan
    ) -> vision_patches.View | None:
        """Return what the text encoder sees: the part of the picture that the model sees."""
        rules, own = self._bundle.manifest.prompt.vision, self._bundle.manifest.geometry
        if rules is None:
            return None
        if rules.view_resample != own.resample or resized.dtype != np.uint8:
            other = replace(own, resample=rules.view_resample, resize_in="uint8")
            resized = geometry.resize(pixels, plan, other)
        left, top, right, bottom = plan.crop_xyxy
        part = np.ascontiguousarray(resized[top:bottom, left:right], np.uint8)
        return vision_patches.view(part, (right - left, bottom - top), rules)


def _shown(pixels: Uint8, image: ImageSource) -> Uint8:
    """Return what a refiner and a guided mask see: nobody changes it under them."""
    given = isinstance(image, np.ndarray) and image.flags.writeable
    shown = pixels.copy() if given else pixels.view()
    shown.flags.writeable = False
    return shown
