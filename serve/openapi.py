"""What the service is, for programs (OpenAPI 3.1) and for people (/docs)."""

from __future__ import annotations

import html
import json
from functools import cache
from typing import Any

from rism import __version__
from rism.serve.examples import EXAMPLES
from rism.serve.requests import FLAGS, NUMBERS, TEXTS

Schema = dict[str, Any]
_NUMBER: Schema = {"type": "number"}
_TEXT: Schema = {"type": "string"}
_WHOLE: Schema = {"type": "integer"}


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    return {"type": "object", "properties": required | (optional or {}), "required": list(required)}


def _array(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_OPTIONS: Schema = {
    **dict.fromkeys(NUMBERS, _NUMBER),
    **{name: {"type": "boolean"} for name in FLAGS},
    **{
        name: {**_TEXT, **({"enum": list(allowed)} if allowed else {})}
        for name, allowed in TEXTS.items()
    },
}
_WANTED: Schema = {
    name: {"type": "boolean", "description": text}
    for name, text in {
        "polygons": "Polygons beside the RLE: parts, each an outline and those of its holes.",
        "mask_png": "The mask as a PNG in base64 beside the RLE.",
        "maps": "The maps on the token grid: score, coarse, refined, and of each word where the "
        "bundle has it.",
        "overlay": "Answer with a picture of all masks, image/png.",
        "keep": "Keep the model's outputs: the same question with another tau then runs only what "
        "comes after them.",
    }.items()
}
_RLE = _object(
    {"size": _array(_WHOLE, minItems=2, maxItems=2, description="height, width"), "counts": _TEXT}
)
_RING = _array(_array(_NUMBER, minItems=2, maxItems=2))
_ROWS = _array(_array(_NUMBER))
_RESULT = _object(
    {
        "expression": _TEXT,
        "instruction": _TEXT,
        "width": _WHOLE,
        "height": _WHOLE,
        "box_xyxy": _or_null(_array(_WHOLE, minItems=4, maxItems=4)),
        "area_px": _WHOLE,
        "area_share": _NUMBER,
        "score": _NUMBER,
        "separability": _NUMBER,
        "concentration": _NUMBER,
        "agreement": _NUMBER,
        "confidence": _or_null(_NUMBER),
        "reason": _or_null({**_TEXT, "description": "Why the mask is empty, or null."}),
        "doubt": _or_null(_TEXT),
        "demonstrator": {"type": "boolean"},
        "outside": _or_null(_TEXT),
        "sinks": _array(_WHOLE),
        "rle": {"$ref": "#/components/schemas/Rle"},
    },
    {
        "polygons": _array(_array(_RING)),
        "mask_png": _TEXT,
        "maps": _object(
            {
                "crop_xyxy": _array(_WHOLE), "resized_wh": _array(_WHOLE),
                "score": _ROWS, "coarse": _ROWS, "refined": _ROWS,
            },
            {"words": _array(_object({"text": _TEXT, "attention": _ROWS}))},
        ),
    },
)  # fmt: skip
_ANSWER = _object(
    {
        "results": _array({"$ref": "#/components/schemas/Result"}),
        "timings_ms": {"type": "object", "additionalProperties": _NUMBER},
        "provider": _TEXT,
        "precision": _TEXT,
        "bundle": _object({"name": _TEXT, "digest": _TEXT}),
    }
)
_EXAMPLES = _object(
    {"examples": _array(_object({"name": _TEXT, "expressions": _array(_TEXT, minItems=1)}))}
)
_SCHEMAS = {
    "Error": _object({"error": _TEXT, "hint": _TEXT}),
    "Rle": {**_RLE, "description": "COCO's compressed run-length encoding."},
    "Result": _RESULT,
    "Answer": _ANSWER,
}
_REFUSALS = {
    "400": "The request cannot be read.",
    "401": "The key is missing or wrong.",
    "404": "There is none of this name.",
    "405": "No such method here.",
    "406": "One mask was asked for, and there are several expressions.",
    "408": "The request came too slowly.",
    "413": "The request or the image is too large.",
    "415": "Neither a form nor JSON.",
    "422": "A field is missing, unknown, or not what it must be.",
    "429": "The queue is full; see Retry-After.",
    "500": "A fault of the server.",
    "503": "Not ready.",
    "504": "No result in time.",
}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _refusals(*statuses: str) -> Schema:
    error = _json({"$ref": "#/components/schemas/Error"})
    return {status: {"description": _REFUSALS[status], "content": error} for status in statuses}


def _get(summary: str, answer: Schema, *refusals: str) -> Schema:
    found = {"200": {"description": summary, "content": answer}, **_refusals(*refusals)}
    return {"get": {"summary": summary, "responses": found}}


def _segment() -> Schema:
    texts = _array({**_TEXT, "minLength": 1}, minItems=1)
    fields = {**_OPTIONS, **_WANTED}
    form = _object({"image": {**_TEXT, "format": "binary"}, "expression": texts}, fields)
    # A list under either name; schemathesis must know that one is required.
    body = _object(
        {"image": {**_TEXT, "description": "A data URI, or base64."}, "expressions": texts}, fields
    )
    return {
        "post": {
            "summary": "Segment what each expression refers to in an image.",
            "parameters": [
                {"name": name, "in": "query", "required": False, **_parameter(schema)}
                for name, schema in _WANTED.items()
            ],
            "requestBody": {
                "required": True,
                "content": {
                    "multipart/form-data": {"schema": {**form, "additionalProperties": False}},
                    "application/json": {"schema": {**body, "additionalProperties": False}},
                },
            },
            "responses": {
                "200": {
                    "description": "A result for each expression, or a picture.",
                    "content": {
                        **_json({"$ref": "#/components/schemas/Answer"}),
                        "image/png": {"schema": {**_TEXT, "format": "binary"}},
                    },
                },
                **_refusals(*_REFUSALS.keys() - {"404", "405"}),
            },
        }
    }  # fmt: skip


def _example() -> Schema:
    binary = {"schema": {**_TEXT, "format": "binary"}}
    found = _get(
        "A drawn scene, or a small version of it.",
        {"image/png": binary, "image/jpeg": binary}, "404", "422",
    )  # fmt: skip
    found["get"]["parameters"] = [
        {
            "name": "name", "in": "path", "required": True,
            "schema": {**_TEXT, "enum": list(EXAMPLES)},
        },
        {"name": "thumbnail", "in": "query", "required": False, "schema": {"type": "boolean"}},
    ]  # fmt: skip
    return found


def _parameter(schema: Schema) -> Schema:
    return {"schema": {"type": schema["type"]}, "description": schema["description"]}


@cache
def openapi() -> Schema:
    """Return the OpenAPI document."""
    status = _json(_object({"status": _TEXT}))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "rism",
            "version": __version__,
            "description": "Referring segmentation: an image and an expression to a mask.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/v1/segment": _segment(),
            "/v1/info": _get("The model, and the limits.", _json({"type": "object"}), "401"),
            "/v1/examples": _get("The drawn scenes to try it with.", _json(_EXAMPLES)),
            "/v1/examples/{name}": _example(),
            "/healthz": _get("The process answers.", status),
            "/readyz": _get("The model has run.", status, "503"),
            "/metrics": _get("Counts, for Prometheus.", {"text/plain": {"schema": _TEXT}}, "401"),
        },
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
            },
        },
        "security": [{}, {"key": []}],
    }  # fmt: skip


@cache
def docs_page() -> str:
    """Return the description as HTML that needs nothing else."""
    parts = []
    for path, methods in openapi()["paths"].items():
        for method, operation in methods.items():
            said = html.escape(operation["summary"])
            parts.append(f"<h2><code>{method.upper()} {path}</code></h2><p>{said}</p>")
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                rows = "".join(
                    f"<tr><td><code>{name}</code></td><td>{html.escape(_said(schema))}</td></tr>"
                    for name, schema in content["schema"]["properties"].items()
                )
                parts.append(f"<h3>{kind}</h3><table>{rows}</table>")
            answers = "".join(
                f"<tr><td>{status}</td><td>{html.escape(answer['description'])}</td></tr>"
                for status, answer in operation["responses"].items()
            )
            parts.append(f"<h3>answers</h3><table>{answers}</table>")
    schemas = html.escape(json.dumps(openapi()["components"]["schemas"], indent=2))
    return _PAGE.format(version=__version__, paths="".join(parts), schemas=schemas)


def _said(schema: Schema) -> str:
    kind = schema["type"] + (f": {', '.join(schema['enum'])}" if "enum" in schema else "")
    return f"{kind}. {schema['description']}" if "description" in schema else kind


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>rism: the service</title><link rel="stylesheet" href="static/style.css">
<main class="docs"><h1>rism {version}</h1>
<pre>curl -F image=@street.png -F expression="the green van" -F expression="the red car" \\
     http://127.0.0.1:7000/v1/segment
curl -F image=@street.png -F expression="the green van" -H 'Accept: image/png' \\
     http://127.0.0.1:7000/v1/segment -o mask.png</pre>
<p>The same as <a href="openapi.json">OpenAPI</a>. Options have the meaning and the defaults of
<code>rism run</code>. Errors are <code>{{"error", "hint"}}</code>.</p>
{paths}<h2>schemas</h2><pre>{schemas}</pre></main></html>
"""
