"""The application: addresses, who may ask, and what is answered. Any ASGI server runs it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from rism.runtime.errors import InputError, RismError
from rism.runtime.options import SegmentOptions
from rism.runtime.result.segmentation import Segmentation
from rism.runtime.segmenter import Segmenter
from rism.serve.answers import mask_png, overlay_png, segment_answer
from rism.serve.batching import Batcher, ImageStore, ServedImage
from rism.serve.errors import RequestError, error_response, of_input
from rism.serve.guard import Guard
from rism.serve.metrics import CONTENT_TYPE, Metrics
from rism.serve.model import device_bytes, remembering, warm_up
from rism.serve.openapi import docs_page, openapi
from rism.serve.requests import read_fields, segment_request
from rism.serve.settings import ServeSettings

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]
STATIC = Path(__file__).parent / "static"
log = logging.getLogger("rism.serve")


class Service:
    """What the addresses of one app share: the segmenter, the queue, the metrics.

    Attributes:
        segmenter: does the work.
        settings: the limits.
        metrics: what is counted.
        ready: whether the model has run once.
    """

    def __init__(self, segmenter: Segmenter, settings: ServeSettings) -> None:
        self.segmenter, self.settings = segmenter, settings
        self._remembering = remembering(segmenter)
        self._pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="rism-run")
        self._decoders = ThreadPoolExecutor(settings.workers, thread_name_prefix="rism-image")
        self.metrics = Metrics(lambda: self._batcher.depth, lambda: device_bytes(segmenter))
        self._images = ImageStore(self._decoders, settings.max_pixels, self.metrics.cached.inc)
        self._batcher = Batcher(
            self._pool,
            workers=settings.workers,
            queue=settings.queue,
            delay_s=settings.queue_delay_ms / 1e3,
            max_batch=settings.max_expressions,
            ran=self.metrics.ran,
        )
        self.ready = False

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """Warm up in the background; at the end wait for what runs."""
        loop = asyncio.get_running_loop()
        warming = loop.run_in_executor(self._pool, warm_up, self.segmenter)

        def warm(done: asyncio.Future[None]) -> None:
            if not done.cancelled() and done.exception() is not None:
                log.error("the model cannot run: %s", done.exception())
            self.ready = not done.cancelled() and done.exception() is None

        warming.add_done_callback(warm)
        yield
        for pool in (self._decoders, self._pool):
            await loop.run_in_executor(None, pool.shutdown)

    async def segment(
        self,
        request: Request,
        data: bytes,
        expressions: Sequence[str],
        options: SegmentOptions,
        *,
        keep: bool = False,
    ) -> tuple[ServedImage, list[Segmentation]]:
        """Segment for one request, within its time and while its client waits.

        Raises:
            RequestError: with the status to answer.
            ClientDisconnect: the client has gone; its work is dropped.
        """
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                image = await self._images.open(data)
                segmenter = self._remembering if keep else self.segmenter
                work = asyncio.ensure_future(
                    self._batcher.segment(segmenter, image, expressions, options)
                )
                return image, await _while_connected(request, work)
        except TimeoutError:
            raise RequestError(
                504, f"there was no result within {self.settings.timeout_s:g} s"
            ) from None
        except InputError as error:
            raise of_input(error) from None
        except RismError as error:
            raise RequestError(503, error, hint="see the server's log, and rism doctor") from None


async def _while_connected(
    request: Request, work: asyncio.Future[list[Segmentation]]
) -> list[Segmentation]:
    """Return what comes of the work; cancel it when the client goes."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watch = asyncio.ensure_future(gone())
    try:
        await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        work.cancel()
        watch.cancel()


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
            Route("/healthz", health),
            Route("/readyz", readiness),
            Route("/metrics", metrics),
            Route("/openapi.json", openapi_json),
            Route("/docs", docs),
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
