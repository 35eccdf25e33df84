"""An auto-annotation function for CVAT; it runs where cvat-cli runs. Needs `cvat-sdk`.

By the detection function protocol of `cvat_sdk.auto_annotation` 2.80. A label of the task stands
for an expression:

    cvat-cli --server-host HOST task auto-annotate 7 --function-module rism.integrations.cvat \
        -p expressions=str:"van: the green van; car: the red car on the left" \
        -p bundle=str:bundles/klein
"""

from __future__ import annotations

from collections.abc import Iterator

import cvat_sdk.auto_annotation as cvataa
import PIL.Image
from cvat_sdk.models import LabeledShapeRequest

from rism.runtime.errors import InputError, one_line
from rism.runtime.options import SegmentOptions
from rism.runtime.result.formats.cvat import mask_runs
from rism.runtime.result.polygons import polygons, without_holes
from rism.runtime.result.segmentation import Segmentation
from rism.runtime.segmenter import Segmenter


class CvatFunction:
    """A CVAT detection function: a mask for each expression that an image has the object of.

    Attributes:
        spec: the labels, of type mask.
    """

    def __init__(self, segmenter: Segmenter, expressions: dict[str, str]) -> None:
        """Take a segmenter, and expressions by the label of what they refer to."""
        self._segmenter, self._expressions = segmenter, expressions
        self.spec = cvataa.DetectionFunctionSpec(
            labels=[
                cvataa.label_spec(label, index, type="mask")
                for index, label in enumerate(expressions)
            ]
        )

    def detect(
        self, context: cvataa.DetectionFunctionContext, image: PIL.Image.Image
    ) -> list[LabeledShapeRequest]:
        """Return a mask for each label; or polygons, one for each part, where CVAT wants those.

        CVAT's confidence threshold takes the place of the bundle's own.

        Raises:
            InputError: a threshold is given, and the bundle's confidence was never fitted.
        """
        options: SegmentOptions = {}
        if context.conf_threshold is not None:
            options["confidence"] = context.conf_threshold
        found = self._segmenter.segment(image, list(self._expressions.values()), **options)
        return [
            shape
            for label, result in enumerate(found)
            for shape in _shapes(label, result, as_polygons=context.conv_mask_to_poly)
        ]


def _shapes(
    label: int, result: Segmentation, *, as_polygons: bool
) -> Iterator[LabeledShapeRequest]:
    score = {} if result.confidence is None else {"score": result.confidence}
    if as_polygons:
        for part in polygons(result.mask_hw):
            yield cvataa.polygon(label, without_holes(part).ravel().tolist(), **score)
    elif result.box_xyxy is not None:
        x_0, y_0, x_1, y_1 = result.box_xyxy
        runs = mask_runs(result.mask_hw[y_0:y_1, x_0:x_1])
        yield cvataa.mask(label, [*runs, x_0, y_0, x_1 - 1, y_1 - 1], **score)


def create(expressions: str, bundle: str | None = None, provider: str = "auto") -> CvatFunction:
    """Make the function, as cvat-cli calls it with what `-p` gives.

    Args:
        expressions: "LABEL: EXPRESSION; LABEL: EXPRESSION"; an expression alone is its own label.
        bundle: a folder or a hub id, as of `rism run`; None for the built-in demonstrator.
        provider: as of `rism run`.

    Raises:
        InputError: no expression, or two of one label.
        RismError: the bundle cannot be opened, or cannot run.
    """
    return CvatFunction(
        Segmenter.from_bundle(bundle, provider=provider), parse_expressions(expressions)
    )


def parse_expressions(text: str) -> dict[str, str]:
    """Return expressions by their label.

    Raises:
        InputError: none, or two of one label.

    >>> parse_expressions("van: the green van; the red car")
    {'van': 'the green van', 'the red car': 'the red car'}
    """
    found: dict[str, str] = {}
    for each in filter(None, (part.strip() for part in text.split(";"))):
        label, _, expression = (part.strip() for part in each.partition(":"))
        if not label or label in found:
            raise InputError(
                f"'{one_line(each, limit=80)}' has no label of its own, expected "
                "'LABEL: EXPRESSION; LABEL: EXPRESSION'"
            )
        found[label] = expression or label
    if not found:
        raise InputError("there is no expression, expected 'LABEL: EXPRESSION; LABEL: EXPRESSION'")
    return found
