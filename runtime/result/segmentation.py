"""What a segmentation returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from rism.runtime.arrays import BoolArray, Float32
from rism.runtime.distribution import install_hint
from rism.runtime.errors import RismError, one_line
from rism.runtime.image.geometry import Plan
from rism.runtime.method.upsampling import upsample
from rism.runtime.names import EPSILON
from rism.runtime.result.polygons import polygons
from rism.runtime.result.rle import decode_rle, encode_rle

if TYPE_CHECKING:
    from supervision import Detections

_DOUBTFUL = 0.5  # as likely absent as present


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """The result for one expression on one image; it can be pickled, with its mask compressed.

    Attributes:
        expression: the user's expression, white space collapsed.
        instruction: the instruction sent to the text encoder: the template with the expression in
            it, or a refiner's version of that, followed by the magnets.
        mask_hw: (H, W) bool at the size of the image.
        score_map: (N_h, N_w) float32 on the token grid; the mask is where it is positive after
            upsampling. Zeros without a result, but not where the confidence is too low.
        coarse: (N_h, N_w) float32 in [0, 1], the coarse attention map (CAM).
        refined: (N_h, N_w) float32 in [0, 1], the refined attention map (RAM).
        score: mean of the positive values of `score_map`, the margin by which the object's tokens
            are nearer to it than to the background; 0 where the mask is empty.
        separability: Fisher's score between mask and background; larger is surer.
        concentration: how concentrated the coarse map is, 0 (even) to 1 (one token).
        agreement: correlation of the refined map and the score map, -1 to 1.
        confidence: probability that the object is present, by the bundle's rule for the three
            above; None if that was never fitted, and out of scope (`outside`).
        reason: why the mask is empty, or None where it is not.
        demonstrator: whether the model is one: small, and made for drawn scenes.
        outside: why the expression is out of a demonstrator's scope: none of its nouns is in it.
            None for other models.
        provider: what ran the graphs, such as "cpu", "cuda:0" or "tensorrt-rtx:0"; if they ran on
            several, the transformer's first: "tensorrt-rtx:0+cuda:0".
        precision: of the transformer, such as "float32" or "fp8".
        model: name of the bundle's model.
        timings_ms: wall time by stage. Stages shared by the expressions of one call are divided
            evenly, so that the results of a call add up to its duration.
        tokens: text of each prompt token, if the bundle captures token attention.
        token_attention: (len(tokens), N_h, N_w) float32, or None: attention of each position to
            each prompt token, summed over blocks.
        sinks: indices in the prompt of the attention sinks that were given weight 0; see
            `find_sinks`. Empty if there are none, or without option `sinks`.
        plan: how the image was brought to the model's grid.
    """

    expression: str
    instruction: str
    mask_hw: BoolArray
    score_map: Float32
    coarse: Float32
    refined: Float32
    score: float
    separability: float
    concentration: float
    agreement: float
    confidence: float | None
    reason: str | None
    provider: str
    precision: str
    model: str
    timings_ms: Mapping[str, float]
    plan: Plan = field(repr=False)
    tokens: tuple[str, ...] = ()
    token_attention: Float32 | None = None
    sinks: tuple[int, ...] = ()
    demonstrator: bool = False
    outside: str | None = None

    @property
    def doubt(self) -> str | None:
        """Why the mask is doubtful (confidence below 0.5, or `outside`); None where it is empty."""
        if self.reason is not None:
            return None
        if self.outside is None and self.confidence is not None and self.confidence < _DOUBTFUL:
            return f"confidence {self.confidence:.3f} is below {_DOUBTFUL}"
        return self.outside

    @property
    def mask(self) -> BoolArray:
        """The mask, (H, W) bool; another name of `mask_hw`."""
        return self.mask_hw

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height of the image, pixels."""
        return self.plan.size_wh

    @property
    def scores_hw(self) -> Float32:
        """The score map at the size of the image, (H, W) float32, bilinear; computed on access.

        With `upsample="bilinear"` the mask is where it is positive.
        """
        return np.asarray(upsample(self.score_map, self.plan))

    @property
    def refined_hw(self) -> Float32:
        """The refined map at the size of the image, (H, W) float32; computed on access."""
        return np.asarray(upsample(self.refined, self.plan))

    @cached_property
    def area_px(self) -> int:
        """Pixels in the mask."""
        return int(np.count_nonzero(self.mask_hw))

    @property
    def area_share(self) -> float:
        """Share of the image in the mask, 0 to 1."""
        return self.area_px / self.mask_hw.size

    @cached_property
    def box_xyxy(self) -> tuple[int, int, int, int] | None:
        """Tight box around the mask in pixels, right and bottom exclusive; None where empty."""
        rows = np.flatnonzero(self.mask_hw.any(axis=1))
        if rows.size == 0:
            return None
        columns = np.flatnonzero(self.mask_hw.any(axis=0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    def __repr__(self) -> str:
        size = f"{self.size_wh[0]}x{self.size_wh[1]}"
        found = f"box_xyxy={self.box_xyxy}" if self.reason is None else f"reason={self.reason!r}"
        sure = "" if self.confidence is None else f", confidence={self.confidence:.2f}"
        return f"Segmentation({one_line(self.expression, limit=80)!r}, {size}, {found}{sure})"

    def __getstate__(self) -> dict[str, Any]:
        state = {each.name: getattr(self, each.name) for each in fields(self)}
        state["timings_ms"] = dict(self.timings_ms)
        state["mask_hw"] = (encode_rle(self.mask_hw), self.mask_hw.shape)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, mask_hw=decode_rle(*state["mask_hw"]))

    def to_polygons(self, *, epsilon: float = EPSILON) -> list[list[Float32]]:
        """Return the mask as polygons: for each part its outline and those of its holes.

        See `rism.runtime.result.polygons.polygons`; extra `formats`.
        """
        return polygons(self.mask_hw, epsilon=epsilon)

    def to_coco(
        self,
        *,
        annotation_id: int = 1,
        image_id: int = 1,
        category_id: int = 1,
        rle: bool = False,
        epsilon: float = EPSILON,
    ) -> dict[str, Any] | None:
        """Return the mask as an annotation of COCO, or None where it is empty.

        `segmentation` is a list of polygons, one for each part, or with `rle` a compressed RLE.
        Polygons need the extra `formats`.
        """
        from rism.runtime.result.formats.coco import annotation

        if self.box_xyxy is None:
            return None
        found = annotation(self, category_id=category_id, rle=rle, epsilon=epsilon)
        return {"id": annotation_id, "image_id": image_id, **found}

    def to_yolo(self, *, category: int = 0, epsilon: float = EPSILON) -> str:
        """Return the mask as a line of YOLO's segmentation labels; "" where it is empty.

        All parts are joined to one polygon; extra `formats`.
        """
        from rism.runtime.result.formats.yolo import label_line

        return label_line(self, category=category, epsilon=epsilon)

    def to_supervision(self, *, class_id: int = 0) -> "Detections":
        """Return the mask as `supervision.Detections`: one of them, or none where it is empty.

        Raises:
            RismError: supervision is not installed.
        """
        try:
            from supervision import Detections
        except ImportError:
            raise RismError(
                f"to_supervision needs supervision: {install_hint('supervision')}"
            ) from None
        if self.box_xyxy is None:
            return Detections.empty()
        return Detections(
            xyxy=np.array([self.box_xyxy], np.float32),
            mask=self.mask_hw[None],
            confidence=None if self.confidence is None else np.array([self.confidence]),
            class_id=np.array([class_id]),
            data={"class_name": np.array([self.expression])},
        )

    def to_json_dict(self) -> dict[str, Any]:
        """Return everything but the arrays and the token texts, for JSON."""
        return {
            "expression": self.expression,
            "instruction": self.instruction,
            "width": self.size_wh[0],
            "height": self.size_wh[1],
            "box_xyxy": None if self.box_xyxy is None else list(self.box_xyxy),
            "area_px": self.area_px,
            "area_share": self.area_share,
            "score": self.score,
            "separability": self.separability,
            "concentration": self.concentration,
            "agreement": self.agreement,
            "confidence": self.confidence,
            "reason": self.reason,
            "doubt": self.doubt,
            "demonstrator": self.demonstrator,
            "outside": self.outside,
            "sinks": list(self.sinks),
            "model": self.model,
            "provider": self.provider,
            "precision": self.precision,
            "timings_ms": dict(self.timings_ms),
        }
