"""Label Studio's ML backend.

By label_studio_ml/api.py of HumanSignal/label-studio-ml-backend at d02cedf, and
label_studio/ml/api_connector.py of HumanSignal/label-studio. It signs in with HTTP Basic, whose
password is the server's key.

Images of tasks are data URIs, or files in a folder that the operator names: nothing is fetched.
Nothing is trained either.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rism.runtime.errors import one_line
from rism.runtime.result.formats.label_studio import least_score, region, region_values
from rism.runtime.result.segmentation import Segmentation
from rism.serve.errors import RequestError, error_response
from rism.serve.integrations.label_config import LabelConfig, parse_label_config
from rism.serve.requests import check_expressions, image_bytes, read_json
from rism.serve.service import Service
from rism.serve.settings import ServeSettings


async def health(request: Request) -> Response:
    """`GET /health`."""
    service: Service = request.app.state.service
    if not service.ready:
        return error_response(503, "the model has not run yet")
    return JSONResponse({"status": "UP", "model_class": "rism"})


async def setup(request: Request) -> Response:
    """`POST /setup`: whether the project's label config can be used."""
    service: Service = request.app.state.service
    body = await read_json(request, service.settings)
    parse_label_config(body.get("schema"))
    return JSONResponse({"model_version": _version(service)})


async def predict(request: Request) -> Response:
    """`POST /predict`: a prediction for each task, empty where nothing is asked of it."""
    service: Service = request.app.state.service
    body = await read_json(request, service.settings)
    config = parse_label_config(body.get("label_config"))
    tasks, params = body.get("tasks"), body.get("params")
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise RequestError(422, "tasks are not a list of objects")
    context = params.get("context") if isinstance(params, dict) else None
    predictions: list[dict[str, Any]] = []
    try:
        async with asyncio.timeout(service.settings.timeout_s):
            while len(predictions) < len(tasks):
                task = tasks[len(predictions)]
                predictions.append(await _prediction(request, config, task, context))
    except TimeoutError:
        raise RequestError(
            504, f"{len(predictions)} of {len(tasks)} tasks were done in time",
            hint="send fewer tasks, or start the server with a larger --timeout",
        ) from None  # fmt: skip
    return JSONResponse({"results": predictions})


async def _prediction(
    request: Request, config: LabelConfig, task: dict[str, Any], context: object
) -> dict[str, Any]:
    service: Service = request.app.state.service
    data = task.get("data")
    if not isinstance(data, dict) or not isinstance(data.get(config.column), str):
        raise RequestError(422, f"a task has no image in data.{one_line(config.column, limit=40)}")
    found: dict[str, Any] = {"model_version": _version(service), "result": []}
    expressions = config.asked(data, context)
    if not expressions:
        return found
    expressions = check_expressions(expressions, service.settings)
    image = await asyncio.to_thread(_read, data[config.column], service.settings)
    _, results = await service.segment(request, image, expressions, {})
    found["result"] = await asyncio.to_thread(_regions, config, results)
    return found | least_score(found["result"])


def _regions(config: LabelConfig, results: Sequence[Segmentation]) -> list[dict[str, Any]]:
    """Return the regions of masks, in each form that the config has a control for."""
    regions = []
    for result in results:
        shared = region(result, image=config.image)
        for control in config.masks if result.mask_hw.any() else ():
            labels = control.labels_of(result.expression)
            kind = control.kind if control.kind and labels else control.form
            for value in region_values(result, brush=control.form == "brush"):
                own = {"id": uuid.uuid4().hex[:10], "from_name": control.name, "type": kind}
                regions.append(
                    {**own, **shared, "value": {**value, **({kind: labels} if labels else {})}}
                )
    return regions


def _read(value: str, settings: ServeSettings) -> bytes:
    """Return the bytes of a task's image.

    Raises:
        RequestError: an address; a file that is not in the folder; no folder was named.
    """
    if value.startswith("data:"):
        return image_bytes(value)
    if not value.startswith("/data/"):
        raise RequestError(
            422, f"the image is '{one_line(value, limit=80)}', and this server fetches nothing",
            hint="use data URIs, uploads or local files in the tasks: see --label-studio-files",
        )  # fmt: skip
    folder = settings.label_studio_files
    if folder is None:
        raise RequestError(
            422, f"'{one_line(value, limit=80)}' is a file of Label Studio",
            hint="start the server with --label-studio-files DIR, the folder of its files",
        )  # fmt: skip
    where = urlsplit(value)
    local = where.path.rstrip("/") == "/data/local-files"
    name = parse_qs(where.query).get("d", [""])[0] if local else unquote(where.path[6:])
    return _file_below(folder.resolve(), name, settings.max_body)


def _file_below(folder: Path, name: str, most: int) -> bytes:
    absent = RequestError(
        422, f"there is no file '{one_line(name, limit=80)}' below --label-studio-files",
        hint="that folder is Label Studio's media folder, or its local files' document root",
    )  # fmt: skip
    try:
        file = (folder / name).resolve()
        if not file.is_relative_to(folder) or not file.is_file():
            raise absent
        if file.stat().st_size > most:
            raise RequestError(413, f"'{one_line(name, limit=80)}' has more than {most} bytes")
        return file.read_bytes()
    except (OSError, ValueError, RuntimeError):  # a null byte, a loop of links
        raise absent from None


def _version(service: Service) -> str:
    return f"{service.segmenter.manifest.model.name}-{service.segmenter.bundle.digest[:8]}"


ROUTES = [
    Route("/health", health),
    Route("/setup", setup, methods=["POST"]),
    Route("/predict", predict, methods=["POST"]),
]
