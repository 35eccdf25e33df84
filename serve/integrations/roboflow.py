"""Roboflow's concept segmentation with SAM 3: text prompts to masks.

By https://docs.roboflow.com/models/supported-models/sam3 and inference/core/entities/{requests,
responses}/sam3.py of roboflow/inference. `supervision.Detections.from_sam3` reads the polygons.
Beside them are `predictions` and `image`, as Roboflow's other models answer, whose masks are COCO
RLE: `supervision.Detections.from_inference` reads those, without loss.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rism.runtime.arrays import BoolArray
from rism.runtime.errors import one_line
from rism.runtime.result.polygons import pixel_polygons, without_holes
from rism.runtime.result.rle import coco_rle
from rism.runtime.result.segmentation import Segmentation
from rism.serve.errors import RequestError
from rism.serve.requests import check_expressions, image_bytes, least_confidence, read_json
from rism.serve.service import Service


async def concept_segment(request: Request) -> Response:
    """`POST /sam3/concept_segment`: at most one mask for a prompt, and none where it is absent.

    `confidence` is null where the bundle's was never fitted; then `output_prob_thresh` is refused.
    """
    service: Service = request.app.state.service
    start = time.perf_counter()
    body = await read_json(request, service.settings)
    form = body.get("format", "polygon")
    if form not in ("polygon", "rle"):
        raise RequestError(422, f"format is '{one_line(form, limit=40)}', expected polygon or rle")
    image = body.get("image")
    if not isinstance(image, dict) or image.get("type") != "base64":
        raise RequestError(
            422, "the image is not of type base64, and this server fetches nothing",
            hint='send {"type": "base64", "value": "..."}',
        )  # fmt: skip
    expressions = check_expressions(_texts(body), service.settings)
    _, results = await service.segment(
        request,
        image_bytes(image.get("value")),
        expressions,
        least_confidence(body.get("output_prob_thresh")),
    )
    answer = await asyncio.to_thread(_answer, results, form)
    return JSONResponse({**answer, "time": time.perf_counter() - start})


def _texts(body: dict[str, Any]) -> tuple[Any, ...]:
    prompts = body.get("prompts", [{"text": body["text"]}] if "text" in body else [])
    if not isinstance(prompts, list) or not all(isinstance(each, dict) for each in prompts):
        raise RequestError(422, "prompts are not a list of objects")
    if any(each.get("boxes") or each.get("points") for each in prompts):
        raise RequestError(422, "a prompt has boxes or points: this model is asked by text")
    return tuple(each.get("text") for each in prompts)


def _answer(results: Sequence[Segmentation], form: str) -> dict[str, Any]:
    prompt_results, predictions = [], []
    for index, result in enumerate(results):
        rle = coco_rle(result.mask_hw)
        found = []
        if result.box_xyxy is not None:
            masks: object = rle if form == "rle" else _polygons(result.mask_hw)
            found = [{"masks": masks, "confidence": result.confidence, "format": form}]
            x_0, y_0, x_1, y_1 = result.box_xyxy
            predictions.append(
                {
                    "x": (x_0 + x_1) / 2,
                    "y": (y_0 + y_1) / 2,
                    "width": x_1 - x_0,
                    "height": y_1 - y_0,
                    "confidence": result.confidence,
                    "class": result.expression,
                    "class_id": index,
                    "rle": rle,
                }
            )
        echo = {"prompt_index": index, "type": "text", "text": result.expression, "num_boxes": 0}
        prompt_results.append({"prompt_index": index, "echo": echo, "predictions": found})
    width, height = results[0].size_wh
    return {
        "prompt_results": prompt_results,
        "predictions": predictions,
        "image": {"width": width, "height": height},
    }


def _polygons(mask_hw: BoolArray) -> list[list[list[int]]]:
    """Return a polygon for each part, as OpenCV draws them."""
    return [without_holes(part).astype(int).tolist() for part in pixel_polygons(mask_hw)]


ROUTES = [Route("/sam3/concept_segment", concept_segment, methods=["POST"])]
