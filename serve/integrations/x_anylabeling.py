"""X-AnyLabeling's remote server, with a text prompt.

By docs/source/en/router.md, user_guide.md and app/schemas/ of CVHub520/X-AnyLabeling-Server at
70599dc, and the client's anylabeling/services/auto_labeling/remote_server.py at 87da339. The client
sends its key in the header `Token`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rism.runtime.errors import one_line
from rism.runtime.result.polygons import polygons, without_holes
from rism.runtime.result.segmentation import Segmentation
from rism.serve.errors import RequestError
from rism.serve.requests import check_expressions, image_bytes, least_confidence, read_json
from rism.serve.service import Service

MODEL = "rism"
_BETWEEN = re.compile(r"\.(?!\d)|\n")  # not in 3.5; commas are part of expressions


async def models(request: Request) -> Response:
    """`GET /v1/models`: one model, and what the client shows for it."""
    service: Service = request.app.state.service
    manifest = service.segmenter.manifest
    widgets: list[tuple[str, object]] = [("edit_text", None), ("button_send", None)]
    if manifest.method.confidence is not None:
        widgets += [("input_conf", None), ("edit_conf", manifest.method.confidence.threshold)]
    widgets.append(("toggle_preserve_existing_annotations", False))
    model = {
        "display_name": f"rism: {manifest.model.name}",
        "batch_processing_mode": "text_prompt",
        "widgets": [{"name": name, "value": value} for name, value in widgets],
        "params": {},
        "capabilities": {},
    }
    return JSONResponse({"success": True, "data": {MODEL: model}})


async def predict(request: Request) -> Response:
    """`POST /v1/predict`: a polygon for each part of a mask; holes are reached by a cut.

    Several expressions are separated by full stops or line breaks. Where the object is absent there
    is no shape. `iou_threshold` and `epsilon_factor`, which the client always sends, do nothing.
    """
    service: Service = request.app.state.service
    body = await read_json(request, service.settings)
    model, params = body.get("model"), body.get("params", {})
    if model != MODEL:
        raise RequestError(
            404, f"there is no model '{one_line(model, limit=40)}'", hint=f"ask for {MODEL}"
        )
    if not isinstance(params, dict) or params.get("marks"):
        raise RequestError(
            422, "params are not an object, or have marks: this model is asked by text_prompt"
        )
    text = params.get("text_prompt", "")
    if not isinstance(text, str):
        raise RequestError(422, f"text_prompt is '{one_line(text, limit=40)}', expected words")
    parts = dict.fromkeys(each.strip() for each in _BETWEEN.split(text))
    expressions = check_expressions(tuple(filter(None, parts)), service.settings)
    _, results = await service.segment(
        request,
        image_bytes(body.get("image")),
        expressions,
        least_confidence(params.get("conf_threshold")),
    )
    shapes = await asyncio.to_thread(_shapes, results)
    return JSONResponse({"success": True, "data": {"shapes": shapes, "description": ""}})


def _shapes(results: Sequence[Segmentation]) -> list[dict[str, Any]]:
    return [
        {
            "label": result.expression,
            "shape_type": "polygon",
            "points": without_holes(part).tolist(),
            "score": result.confidence,
            "description": result.doubt,
        }
        for result in results
        for part in polygons(result.mask_hw)
    ]


ROUTES = [Route("/v1/models", models), Route("/v1/predict", predict, methods=["POST"])]
