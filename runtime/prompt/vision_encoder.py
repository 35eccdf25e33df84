"""Vision-encoder features of an image, and the position ids of its tokens in the prompt."""

from collections.abc import Mapping
from dataclasses import dataclass

from rism.runtime.arrays import Float32, Int64
from rism.runtime.bundle.manifest import Manifest
from rism.runtime.bundle.prompt_spec import VisionRules
from rism.runtime.engines.base import Arrays, Engine
from rism.runtime.engines.device_engine import Mirrored, run_in_place
from rism.runtime.engines.tensor_checks import expect_shape
from rism.runtime.errors import InputError
from rism.runtime.image.vision_patches import View, merged_grid, patch_positions, pixel_values
from rism.runtime.image_encoder import ImageState
from rism.runtime.lru_cache import LruCache
from rism.runtime.prompt.encoder import EncodedPrompts, PromptEncoder
from rism.runtime.prompt.position_ids import position_ids, prompt_positions

VIEWS_KEPT = 8


@dataclass(frozen=True, eq=False)
class VisionContext:
    """Positions of the tokens of prompts with one image.

    Attributes:
        digest: of the text encoder's view of the image; empty without vision.
        position_ids: (3, B, S) int64 for the text encoder, or None.
        positions: for each prompt (tokens, 3) float32 for the transformer; empty if it takes
            none.
    """

    digest: str = ""
    position_ids: Int64 | None = None
    positions: tuple[Float32, ...] = ()


class VisionEncoder:
    """Runs the bundle's "vision_encoder" on images, and keeps their embeddings."""

    def __init__(
        self, encoder: PromptEncoder, vision: VisionRules, engine: Engine, *, token_px: int
    ) -> None:
        """Take a bundle's parts; `token_px` is the side of a clean token in pixels."""
        self._encoder = encoder
        self._vision = vision
        self._engine = engine
        self._token_px = token_px
        self._kept: LruCache[Float32 | Mirrored] = LruCache(VIEWS_KEPT)

    def image_tokens(self, image: ImageState) -> int:
        """Return the number of tokens of an image."""
        rows, columns = merged_grid(_view_of(image), self._vision)
        return rows * columns

    def encode(self, image: ImageState) -> Float32 | Mirrored:
        """Return the embeddings of an image's tokens: (V, E) float32.

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
        """Return the positions of the tokens of prompts with an image.

        Raises:
            BundleError: the prompts do not have the image's tokens.
        """
        view, rules = _view_of(image), self._encoder.rules
        token = self._encoder.image_token_id
        assert token is not None, "an encoder with vision has an image token"
        ids = position_ids(
            encoded.input_ids,
            encoded.seen_mask,
            image_token_id=token,
            grid_hw=view.grid_hw,
            merge=self._vision.merge,
            unseen_position=rules.unseen_position,
        )
        if rules.positions == "none":
            return VisionContext(view.digest, ids)
        left, top, right, bottom = image.plan.crop_xyxy
        placed = []
        for row, length in enumerate(encoded.lengths.tolist()):
            kept = slice(rules.drop, rules.drop + length)
            where = prompt_positions(
                ids[0, row, kept],
                encoded.input_ids[row, kept] == token,
                view_wh=view.size_wh,
                model_wh=(right - left, bottom - top),
                grid_hw=merged_grid(view, self._vision),
                offset_px=rules.grid_offset_px,
                token_px=self._token_px,
            )
            placed.append(where)
        return VisionContext(view.digest, ids, tuple(placed))


def open_vision_encoder(
    manifest: Manifest, encoder: PromptEncoder, engines: Mapping[str, Engine]
) -> VisionEncoder | None:
    """Return the vision encoder of a bundle; None if its text encoder has no vision."""
    vision, token_px = manifest.prompt.vision, manifest.geometry.token_px
    if vision is None:
        return None
    return VisionEncoder(encoder, vision, engines["vision_encoder"], token_px=token_px)


def _view_of(image: ImageState) -> View:
    if image.view is None:
        raise InputError(
            "the image state has no view for the text encoder, expected one made by this "
            "segmenter: call its set_image"
        )
    return image.view
