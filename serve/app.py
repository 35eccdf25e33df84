"""The application: addresses, who may ask, and what is answered. Any ASGI server runs it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from rism.runtime.segmenter import Segmenter
from rism.serve.answers import mask_png, overlay_png, segment_answer
from rism.serve.errors import RequestError, error_response
from rism.serve.examples import EXAMPLES, example_png, thumbnail_jpeg
from rism.serve.guard import Guard
from rism.serve.integrations import kserve, label_studio, roboflow, x_anylabeling
from rism.serve.metrics import CONTENT_TYPE
from rism.serve.openapi import docs_page, openapi
from rism.serve.requests import read_fields, read_flag, segment_request
from rism.serve.service import Service
from rism.serve.settings import ServeSettings

STATIC = Path(__file__).parent / "static"


async def segment(request: Request) -> Response:
    """`POST /v1/segment`."""
    service: Service = request.app.state.service
    fields = await read_fields(request, service.settings)
    asked = segment_request(fields, request.query_params, service.settings)
    picture = "image/png" in request.headers.get("accept", "")
    if picture and len(asked.expressions) > 1 and "overlay" not in asked.wanted:
        raise RequestError(
            406, f"a mask shows one expression, and there are {len(asked.expressions)}"
        )
    image, results = await service.segment(
        request, asked.image, asked.expressions, asked.options, keep="keep" in asked.wanted
    )

    def answer() -> Response:
        if "overlay" in asked.wanted:
            return Response(overlay_png(image.pixels, results), media_type="image/png")
        if picture:
            return Response(mask_png(results[0]), media_type="image/png")
        return JSONResponse(segment_answer(service.segmenter, results, asked.wanted))

    return await asyncio.to_thread(answer)


async def health(_request: Request) -> Response:
    """`GET /healthz`: the process answers."""
    return JSONResponse({"status": "alive"})


async def readiness(request: Request) -> Response:
    """`GET /readyz`: the model has run."""
    service: Service = request.app.state.service
    if not service.ready:
        return error_response(503, "the model has not run yet")
    return JSONResponse({"status": "ready"})


async def metrics(request: Request) -> Response:
    """`GET /metrics`."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE})


async def info(request: Request) -> Response:
    """`GET /v1/info`: what runs here, for the page and for clients."""
    service: Service = request.app.state.service
    segmenter, settings = service.segmenter, service.settings
    model = segmenter.manifest.model
    return JSONResponse(
        {
            "model": model.name,
            "licence": model.licence,
            "demonstrator": model.demonstrator,
            "provider": segmenter.provider,
            "precision": segmenter.precision,
            "capture": segmenter.capture,
            "tau": segmenter.manifest.method.tau,
            "bundle": segmenter.bundle.digest,
            "limits": {
                "body_bytes": settings.max_body,
                "pixels": settings.max_pixels,
                "expressions": settings.max_expressions,
                "seconds": settings.timeout_s,
            },
        }
    )


async def examples(_request: Request) -> Response:
    """`GET /v1/examples`: the names of the drawn scenes, and expressions for each."""
    found = [
        {"name": name, "expressions": list(each.expressions)} for name, each in EXAMPLES.items()
    ]
    return JSONResponse({"examples": found})


async def example(request: Request) -> Response:
    """`GET /v1/examples/NAME`: a scene as a PNG; with `?thumbnail=1` a small JPEG of it."""
    name = request.path_params["name"]
    if name not in EXAMPLES:
        raise RequestError(
            404, f"there is no example '{name}'", hint=f"the examples are {', '.join(EXAMPLES)}"
        )
    if read_flag("thumbnail", request.query_params.get("thumbnail", False)):
        return Response(await asyncio.to_thread(thumbnail_jpeg, name), media_type="image/jpeg")
    return Response(await asyncio.to_thread(example_png, name), media_type="image/png")


async def openapi_json(_request: Request) -> Response:
    """`GET /openapi.json`."""
    return JSONResponse(openapi())


async def docs(_request: Request) -> Response:
    """`GET /docs`."""
    return HTMLResponse(docs_page())


async def page(_request: Request) -> Response:
    """`GET /`."""
    return HTMLResponse((STATIC / "index.html").read_text(encoding="utf-8"))


def app(segmenter: Segmenter, settings: ServeSettings | None = None) -> Starlette:
    """Make the application: `uvicorn.run(app(Segmenter.from_bundle()))`.

    Args:
        segmenter: of a bundle; with `workers` of the settings, loaded for as many.
        settings: the limits; None for the defaults.
    """
    settings = settings or ServeSettings()
    service = Service(segmenter, settings)
    guards = [Middleware(Guard, settings=settings, metrics=service.metrics)]
    if settings.cors_origins:
        guards.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.cors_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type", "Token"],
            )
        )
    made = Starlette(
        routes=[
            Route("/", page),
            Route("/v1/segment", segment, methods=["POST"]),
            Route("/v1/info", info),
            Route("/v1/examples", examples),
            Route("/v1/examples/{name}", example),
            Route("/healthz", health),
            Route("/readyz", readiness),
            Route("/metrics", metrics),
            Route("/openapi.json", openapi_json),
            Route("/docs", docs),
            *kserve.ROUTES,
            *label_studio.ROUTES,
            *roboflow.ROUTES,
            *x_anylabeling.ROUTES,
            Mount("/static", StaticFiles(directory=STATIC), name="static"),
        ],
        middleware=guards,
        exception_handlers={RequestError: _request_error, HTTPException: _http_error},
        lifespan=service.lifespan,
    )
    made.state.service = service
    return made


async def _request_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_response(error.status, error, hint=error.hint, headers=error.headers)


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, headers=error.headers)
