"""From a request's body to an image and expressions; everything in it is hostile."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from rism.runtime.errors import one_line
from rism.runtime.names import TOKEN_SETS, UPSAMPLING_METHODS
from rism.runtime.options import SegmentOptions
from rism.serve.errors import RequestError
from rism.serve.settings import ServeSettings

FLAGS = ("sinks", "spatial_prior", "instances", "always", "paper")
NUMBERS = ("tau", "confidence")
TEXTS: dict[str, tuple[str, ...]] = {
    "prompt_weights": TOKEN_SETS,
    "upsample": UPSAMPLING_METHODS,
    "prototype": ("equation", "cosine"),
    "magnets": (),
}
"""Options of `Segmenter.segment` by their type; the texts with what is allowed."""
WANTED = ("polygons", "mask_png", "maps", "overlay", "keep")
"""What else may be asked for; see `SegmentRequest`."""
_LONGEST_TEXT = 4096
_FIELDS = 256


@dataclass(frozen=True, kw_only=True)
class SegmentRequest:
    """What a client asks for.

    Attributes:
        image: the bytes of a file.
        expressions: at least one.
        options: of `Segmenter.segment`.
        wanted: some of `WANTED`: polygons and masks as PNG beside the RLE; the maps on the token
            grid; a picture instead of JSON; and that the model's outputs are kept, so that the
            same question with another tau runs only what comes after them.
    """

    image: bytes
    expressions: tuple[str, ...]
    options: SegmentOptions
    wanted: frozenset[str]


async def read_body(request: Request, settings: ServeSettings) -> bytes:
    """Return the whole body.

    Raises:
        RequestError: it is larger than allowed, or does not come in time.
        ClientDisconnect: the client has gone.
    """
    length = request.headers.get("content-length", "0")
    too_large = RequestError(413, f"the request has more than {settings.max_body} bytes")
    if not length.isdecimal() or len(length) > 18:
        raise RequestError(400, "Content-Length is not a number")
    if int(length) > settings.max_body:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(settings.timeout_s):
            async for part in request.stream():
                size += len(part)
                if size > settings.max_body:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise RequestError(408, f"the request took more than {settings.timeout_s:g} s") from None
    return b"".join(parts)


async def read_fields(request: Request, settings: ServeSettings) -> dict[str, list[Any]]:
    """Return the fields of a form or of a JSON object: lists of texts, files as bytes, values.

    Raises:
        RequestError: neither, or damaged, or too large.
        ClientDisconnect: the client has gone.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "multipart/form-data"):
        raise RequestError(
            415, f"the content type is '{one_line(kind, limit=60)}', expected multipart/form-data "
            "or application/json",
        )  # fmt: skip
    body = await read_body(request, settings)
    if kind == "application/json":
        found = json_object(body)
        return {
            name: [*value] if isinstance(value, list) else [value] for name, value in found.items()
        }
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    whole = Request(request.scope, receive)
    fields: dict[str, list[Any]] = {}
    try:
        async with whole.form(max_files=1, max_fields=_FIELDS, max_part_size=2**16) as form:
            for name, value in form.multi_items():
                read = await value.read() if isinstance(value, UploadFile) else value
                fields.setdefault(name, []).append(read)
    except HTTPException as error:  # Starlette's own word for a form that cannot be read
        raise RequestError(400, f"the form cannot be read: {error.detail}") from None
    except (UnicodeDecodeError, ValueError) as error:
        raise RequestError(400, f"the form cannot be read: {error}") from None
    return fields


async def read_json(request: Request, settings: ServeSettings) -> dict[str, Any]:
    """Return the JSON object of a body, whatever its content type.

    Raises:
        RequestError: none, or too large.
        ClientDisconnect: the client has gone.
    """
    return json_object(await read_body(request, settings))


def json_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        RequestError: it is none.
    """
    try:
        found = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON: {one_line(error, limit=120)}") from None
    if not isinstance(found, dict):
        raise RequestError(400, "the body is not a JSON object")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def segment_request(
    fields: Mapping[str, list[Any]], query: Mapping[str, str], settings: ServeSettings
) -> SegmentRequest:
    """Check the fields of `POST /v1/segment`; what is wanted may stand in the address as well.

    Raises:
        RequestError: one that is missing, unknown, or not what it must be.
    """
    known = ("image", "expression", "expressions", *NUMBERS, *FLAGS, *TEXTS, *WANTED)
    for name in (*fields, *query):
        if name not in known:
            raise RequestError(
                422, f"there is no field '{one_line(name, limit=40)}'",
                hint=f"the fields are {', '.join(known)}",
            )  # fmt: skip
    images = fields.get("image", [])
    if len(images) != 1:
        raise RequestError(422, f"there are {len(images)} images, expected one in 'image'")
    expressions = (*fields.get("expression", []), *fields.get("expressions", []))
    expressions = check_expressions(expressions, settings)
    options: dict[str, object] = {}
    for name in (*NUMBERS, *FLAGS, *TEXTS):
        if name in fields:
            options[name] = _option(name, fields[name])
    wanted = {
        name for name in WANTED
        if read_flag(name, query[name] if name in query else fields.get(name, [False])[0])
    }  # fmt: skip
    return SegmentRequest(
        image=image_bytes(images[0]),
        expressions=expressions,
        options=cast(SegmentOptions, options),
        wanted=frozenset(wanted),
    )


def check_expressions(found: tuple[Any, ...], settings: ServeSettings) -> tuple[str, ...]:
    """Return the expressions of a request.

    Raises:
        RequestError: none, too many, or one that is not a text.
    """
    if not found:
        raise RequestError(422, "there is no expression, expected 'expression' at least once")
    if len(found) > settings.max_expressions:
        raise RequestError(
            422, f"there are {len(found)} expressions, at most {settings.max_expressions} are read",
            hint="send several requests, or start the server with a larger --max-expressions",
        )  # fmt: skip
    for text in found:
        if not isinstance(text, str) or len(text) > _LONGEST_TEXT or not text.strip():
            raise RequestError(
                422, f"an expression is '{one_line(text, limit=60)}', expected words"
            )
    return found


def image_bytes(value: object) -> bytes:
    """Return the bytes of a file, or of a data URI or base64 in JSON; nothing is fetched.

    Raises:
        RequestError: neither.
    """
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise RequestError(422, "the image is not a file, expected one, or a data URI in JSON")
    if "://" in value[:32]:
        raise RequestError(
            422, "the image is an address, and this server fetches nothing",
            hint="send the file, or its bytes as a data URI",
        )  # fmt: skip
    text = value
    if value.startswith("data:"):
        head, _, text = value.partition(",")
        if not head.endswith(";base64"):
            raise RequestError(422, "the image's data URI is not base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(
            422, "the image is not base64",
            hint="send 'data:image/png;base64,...', or the file itself as multipart/form-data",
        ) from None  # fmt: skip


def least_confidence(value: object) -> SegmentOptions:
    """Return a client's threshold as an option; None and 0 stand for the bundle's own.

    Raises:
        RequestError: it is no number.
    """
    least = 0.0 if value is None else _option("confidence", [value])
    return cast(SegmentOptions, {"confidence": least} if least else {})


def _option(name: str, values: list[Any]) -> object:
    if len(values) != 1:
        raise RequestError(422, f"there are {len(values)} values of {name}, expected one")
    value = values[0]
    if name in FLAGS:
        return read_flag(name, value)
    if name in NUMBERS:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise RequestError(422, f"{name} is '{one_line(value, limit=40)}', expected a number")
        try:
            return float(value)
        except (ValueError, OverflowError):
            raise RequestError(
                422, f"{name} is '{one_line(value, limit=40)}', expected a number"
            ) from None
    allowed = TEXTS[name]
    if (
        not isinstance(value, str)
        or len(value) > _LONGEST_TEXT
        or (allowed and value not in allowed)
    ):
        expected = f"one of {', '.join(allowed)}" if allowed else "words"
        raise RequestError(422, f"{name} is '{one_line(value, limit=40)}', expected {expected}")
    return value


def read_flag(name: str, value: object) -> bool:
    """Return true or false, also where it is written as a text.

    Raises:
        RequestError: neither.
    """
    flags = {"1": True, "true": True, "0": False, "false": False, "": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in flags:
        return flags[value.lower()]
    raise RequestError(422, f"{name} is '{one_line(value, limit=40)}', expected true or false")


__all__ = ["ClientDisconnect", "SegmentRequest", "read_fields", "read_flag", "segment_request"]
