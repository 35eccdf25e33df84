"""What the addresses of one app share: the segmenter, the queue, the metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request

from rism.runtime.errors import InputError, RismError
from rism.runtime.options import SegmentOptions
from rism.runtime.result.segmentation import Segmentation
from rism.runtime.segmenter import Segmenter
from rism.serve.batching import Batcher, ImageStore, ServedImage
from rism.serve.errors import RequestError, of_input
from rism.serve.examples import draw_examples
from rism.serve.metrics import Metrics
from rism.serve.model import device_bytes, remembering, warm_up
from rism.serve.settings import ServeSettings

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
        """Warm up in the background, then draw the examples; at the end wait for what runs."""
        loop = asyncio.get_running_loop()
        warming = loop.run_in_executor(self._pool, warm_up, self.segmenter)

        def warm(done: asyncio.Future[None]) -> None:
            if not done.cancelled() and done.exception() is not None:
                log.error("the model cannot run: %s", done.exception())
            self.ready = not done.cancelled() and done.exception() is None
            if self.ready:
                loop.run_in_executor(None, draw_examples)

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
                work = self._batcher.segment(segmenter, image, expressions, options)
                return image, await _while_connected(request, asyncio.ensure_future(work))
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
        del work  # an error would hold this frame, and this frame the error
