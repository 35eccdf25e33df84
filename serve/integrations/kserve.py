"""The KServe v2 protocol (Open Inference Protocol), with its binary tensor data extension.

By https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol. The tensors
are those of the model `rism` in a Triton repository (docs/triton.md), so that a client of one can
ask the other. In JSON, where BYTES are texts, images and masks are base64.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rism import __version__
from rism.runtime.arrays import Array
from rism.runtime.errors import one_line
from rism.runtime.result.segmentation import Segmentation
from rism.runtime.triton_backend import INPUTS, OUTPUTS, result_tensors
from rism.serve.errors import RequestError, error_response
from rism.serve.requests import check_expressions, image_bytes, json_object, read_body
from rism.serve.service import Service

MODEL = "rism"
VERSION = "1"
_HEADER = "inference-header-content-length"


async def server(_request: Request) -> Response:
    """`GET /v2`."""
    about = {"name": "rism", "version": __version__, "extensions": ["binary_tensor_data"]}
    return JSONResponse(about)


async def live(_request: Request) -> Response:
    """`GET /v2/health/live`."""
    return JSONResponse({"live": True})


async def ready(request: Request) -> Response:
    """`GET /v2/health/ready` and `/v2/models/rism/ready`."""
    service: Service = request.app.state.service
    _expect_model(request)
    if not service.ready:
        return error_response(503, "the model has not run yet")
    return JSONResponse({"name": MODEL, "ready": True})


async def model(request: Request) -> Response:
    """`GET /v2/models/rism`: its tensors; -1 is any number of rows."""
    _expect_model(request)
    tensors = {
        kind: [
            {"name": name, "datatype": datatype, "shape": [-1, size]}
            for name, (datatype, size) in described.items()
        ]
        for kind, described in (("inputs", INPUTS), ("outputs", OUTPUTS))
    }
    return JSONResponse({"name": MODEL, "versions": [VERSION], "platform": "rism", **tensors})


async def infer(request: Request) -> Response:
    """`POST /v2/models/rism/infer`: rows of an image and an expression, in any mixture."""
    service: Service = request.app.state.service
    _expect_model(request)
    body = await read_body(request, service.settings)
    most = service.settings.max_expressions
    asked = _infer_request(body, request.headers.get(_HEADER), most)
    check_expressions(tuple(text for _, text in asked.rows), service.settings)
    by_image: dict[bytes, list[str]] = {}
    for image, text in asked.rows:
        by_image.setdefault(image, []).append(text)
    found: dict[tuple[bytes, str], Segmentation] = {}
    try:
        async with asyncio.timeout(service.settings.timeout_s):
            for image, texts in by_image.items():
                _, results = await service.segment(request, image, texts, {})
                found |= {(image, text): one for text, one in zip(texts, results, strict=True)}
    except TimeoutError:
        raise RequestError(504, "there was no result in time") from None
    results = [found[row] for row in asked.rows]
    return await asyncio.to_thread(lambda: _response(asked, result_tensors(results)))


def _expect_model(request: Request) -> None:
    name = request.path_params.get("model", MODEL)
    version = request.path_params.get("version", VERSION)
    if (name, version) != (MODEL, VERSION):
        raise RequestError(
            404, f"there is no model '{one_line(name, limit=40)}' of version "
            f"'{one_line(version, limit=40)}'",
            hint=f"the model is {MODEL}, of version {VERSION}",
        )  # fmt: skip


@dataclass(frozen=True)
class _InferRequest:
    """Rows of a request, and which outputs are wanted, as binary data or not."""

    id: object
    rows: list[tuple[bytes, str]]
    outputs: Mapping[str, bool]


def _infer_request(body: bytes, header: str | None, most: int) -> _InferRequest:
    length = len(body)
    if header is not None:
        if not header.isdecimal() or len(header) > 18 or int(header) > length:
            raise RequestError(400, "Inference-Header-Content-Length is not within the body")
        length = int(header)
    request, binary = json_object(body[:length]), memoryview(body)[length:]
    tensors: dict[str, list[bytes | str]] = {}
    for tensor in _objects(request, "inputs"):
        name = str(tensor.get("name"))
        size = _parameters(tensor).get("binary_data_size")
        if size is not None:
            if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(binary):
                raise RequestError(400, "binary_data_size is more than the body has")
            data, binary = _packed(binary[:size], most), binary[size:]
        else:
            data = _flat(tensor.get("data"))
        shape = [len(data), INPUTS[name][1]] if name in INPUTS and name not in tensors else None
        if tensor.get("datatype") != "BYTES" or not data or tensor.get("shape") != shape:
            raise RequestError(
                422, f"input '{one_line(name, limit=40)}' is of type "
                f"{one_line(tensor.get('datatype'), limit=20)} and shape "
                f"{one_line(tensor.get('shape'), limit=40)} with {len(data)} values",
                hint=f"expected {' and '.join(INPUTS)}, each once, BYTES of shape [rows, 1]",
            )  # fmt: skip
        tensors[name] = data
    if tensors.keys() != INPUTS.keys() or len({len(data) for data in tensors.values()}) > 1:
        raise RequestError(422, f"expected inputs {' and '.join(INPUTS)} with as many rows")
    images = [image_bytes(each) for each in tensors["image"]]
    rows = list(zip(images, [_text(each) for each in tensors["expression"]], strict=True))
    return _InferRequest(request.get("id"), rows, _outputs(request))


def _outputs(request: Mapping[str, Any]) -> dict[str, bool]:
    binary = _parameters(request).get("binary_data_output", False) is True
    if not request.get("outputs"):
        return dict.fromkeys(OUTPUTS, binary)
    found = {}
    for each in _objects(request, "outputs"):
        name = each.get("name")
        if not isinstance(name, str) or name not in OUTPUTS:
            raise RequestError(
                422, f"there is no output '{one_line(name, limit=40)}'",
                hint=f"the outputs are {', '.join(OUTPUTS)}",
            )  # fmt: skip
        found[name] = _parameters(each).get("binary_data", binary) is True
    return found


def _objects(request: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = request.get(name)
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise RequestError(422, f"{name} are not a list of objects")
    return found


def _parameters(tensor: Mapping[str, Any]) -> dict[str, Any]:
    found = tensor.get("parameters")
    return found if isinstance(found, dict) else {}


def _flat(data: object) -> list[bytes | str]:
    """Return the texts of a tensor, whose rows may be nested or not."""
    rows = data if isinstance(data, list) else []
    return [each[0] if isinstance(each, list) and len(each) == 1 else each for each in rows]


def _packed(data: memoryview, most: int) -> list[bytes | str]:
    """Read BYTES, of one value more than allowed at most: before each its length in 4 bytes."""
    values: list[bytes | str] = []
    while data and len(values) <= most:
        length = int.from_bytes(data[:4], "little")
        if len(data) < 4 + length:
            raise RequestError(400, "a BYTES tensor is cut off")
        values.append(bytes(data[4 : 4 + length]))
        data = data[4 + length :]
    return values


def _text(value: bytes | str) -> str:
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        raise RequestError(422, "an expression is not UTF-8") from None


def _response(asked: _InferRequest, arrays: Mapping[str, Array]) -> Response:
    outputs, binary = [], []
    for name, as_binary in asked.outputs.items():
        array = arrays[name]
        described: dict[str, Any] = {
            "name": name,
            "datatype": OUTPUTS[name][0],
            "shape": list(array.shape),
        }
        if as_binary:
            data = _bytes(array)
            described["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        else:
            described["data"] = _values(name, array)
        outputs.append(described)
    body = {"model_name": MODEL, "model_version": VERSION, "outputs": outputs}
    if isinstance(asked.id, str):
        body["id"] = asked.id
    head = json.dumps(body, allow_nan=False).encode()
    if not binary:
        return Response(head, media_type="application/json")
    headers = {_HEADER: str(len(head))}
    return Response(b"".join([head, *binary]), 200, headers, "application/octet-stream")


def _bytes(array: Array) -> bytes:
    if array.dtype != np.object_:
        return array.astype(array.dtype.newbyteorder("<")).tobytes()
    return b"".join(struct.pack("<I", len(each)) + each for each in array.ravel())


def _values(name: str, array: Array) -> list[Any]:
    """Return values for JSON: no NaN but null, masks in base64, reasons as they are."""
    flat = array.ravel().tolist()
    if name == "mask":
        return [base64.b64encode(each).decode() for each in flat]
    if array.dtype == np.object_:
        return [each.decode() for each in flat]
    return [None if each != each else each for each in flat]


_MODEL_PATHS = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
ROUTES = [
    Route("/v2", server),
    Route("/v2/health/live", live),
    Route("/v2/health/ready", ready),
    *(Route(path, model) for path in _MODEL_PATHS),
    *(Route(f"{path}/ready", ready) for path in _MODEL_PATHS),
    *(Route(f"{path}/infer", infer, methods=["POST"]) for path in _MODEL_PATHS),
]
