"""What prompts get of an image: its embeddings, and where its tokens stand."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rism.runtime.bundle.manifest import Manifest
from rism.runtime.bundle.prompt_spec import PromptRules, VisionRules
from rism.runtime.engines.base import Arrays, Engine
from rism.runtime.engines.device_engine import Mirrored, run_in_place
from rism.runtime.engines.tensor_checks import expect_shape
from rism.runtime.errors import InputError
from rism.runtime.image.vision_patches import View, merged_grid, patch_positions, pixel_values
from rism.runtime.image_encoder import ImageState
from rism.runtime.lru_cache import LruCache
from rism.runtime.prompt.encoder import EncodedPrompts, PromptEncoder
from rism.runtime.prompt.position_ids import position_ids, prompt_positions

__all__ = ["VisionContext", "VisionEncoder", "open_vision_encoder"]

Float32: TypeAlias = npt.NDArray[np.float32]

VIEWS_KEPT = 8


@dataclass(frozen=True, eq=False)
class VisionContext:
    """What a few prompts get of one image, apart from its embeddings.

    Attributes:
        digest: names what is seen; empty where the text encoder sees nothing.
        position_ids: (3, B, S) int64 for the text encoder, or None.
        positions: for each prompt (tokens, 3) float32 for the transformer; none where it takes
            none.
    """

    digest: str = ""
    position_ids: npt.NDArray[np.int64] | None = None
    positions: tuple[Float32, ...] = ()


class VisionEncoder:
    """Shows images to the bundle's "vision_encoder", and remembers what it made of them."""

    def __init__(
        self,
        rules: PromptRules,
        vision: VisionRules,
        engine: Engine,
        *,
        image_token_id: int,
        token_px: int,
    ) -> None:
        """Put a vision encoder and the rules for prompts together.

        Args:
            rules: for prompts.
            vision: what they say about images.
            engine: the bundle's "vision_encoder".
            image_token_id: the token that stands for a part of the image.
            token_px: side of a clean token, pixels.
        """
        self._rules = rules
        self._vision = vision
        self._engine = engine
        self._token = image_token_id
        self._token_px = token_px
        self._kept: LruCache[Float32 | Mirrored] = LruCache(VIEWS_KEPT)

    def image_tokens(self, image: ImageState) -> int:
        """Return how many tokens stand for an image."""
        rows, columns = merged_grid(_view_of(image), self._vision)
        return rows * columns

    def encode(self, image: ImageState) -> Float32 | Mirrored:
        """Return an image's embeddings, one for each of its tokens: (V, E) float32.

        Raises:
            ProviderError: the vision encoder failed.
            BundleError: it returned another number of tokens.
        """
        view = _view_of(image)
        embeds = self._kept.get(view.digest)
        if embeds is None:
            feeds: Arrays = {
                "pixel_values": pixel_values(view, self._vision),
                "patch_positions": patch_positions(view.grid_hw, self._vision),
            }
            embeds = run_in_place(self._engine, feeds, "image_embeds")
            shape = (self.image_tokens(image), *embeds.shape[1:2])
            expect_shape(embeds, shape, name="image_embeds")
            self._kept.put(view.digest, embeds)
        return embeds

    def place_tokens(self, encoded: EncodedPrompts, image: ImageState) -> VisionContext:
        """Say where the tokens of prompts about an image stand.

        Raises:
            BundleError: the image's tokens are not in the prompts as they should be.
        """
        view = _view_of(image)
        ids = position_ids(
            encoded.input_ids,
            encoded.seen_mask,
            image_token_id=self._token,
            grid_hw=view.grid_hw,
            merge=self._vision.merge,
            unseen_position=self._rules.unseen_position,
        )
        if self._rules.positions == "none":
            return VisionContext(view.digest, ids)
        left, top, right, bottom = image.plan.crop_xyxy
        placed = []
        for row, length in enumerate(encoded.lengths.tolist()):
            kept = slice(self._rules.drop, self._rules.drop + length)
            where = prompt_positions(
                ids[0, row, kept],
                encoded.input_ids[row, kept] == self._token,
                view_wh=view.size_wh,
                model_wh=(right - left, bottom - top),
                grid_hw=merged_grid(view, self._vision),
                offset_px=self._rules.grid_offset_px,
                token_px=self._token_px,
            )
            placed.append(where)
        return VisionContext(view.digest, ids, tuple(placed))


def open_vision_encoder(
    manifest: Manifest, encoder: PromptEncoder, engines: Mapping[str, Engine]
) -> VisionEncoder | None:
    """Return what a bundle's text encoder looks at images with; None where it does not.

    Args:
        manifest: the bundle's.
        encoder: its tokenizer and template.
        engines: by graph, with "vision_encoder" where the bundle has one.
    """
    vision, token = manifest.prompt.vision, encoder.image_token_id
    if vision is None or token is None:
        return None
    return VisionEncoder(
        manifest.prompt,
        vision,
        engines["vision_encoder"],
        image_token_id=token,
        token_px=manifest.geometry.token_px,
    )


def _view_of(image: ImageState) -> View:
    """Return what the text encoder sees of an image.

    Raises:
        InputError: the state was made without.
    """
    if image.view is None:
        raise InputError(
            "the image state has nothing for the text encoder to look at, expected one made by "
            "this segmenter: call its set_image"
        )
    return image.view
