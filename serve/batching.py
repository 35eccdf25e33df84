"""Expressions on the same image share one encoding and one run of the model; images take turns.

An image with its options is a batch, first come, first served. It waits `queue_delay` for more
expressions, and for a free worker as long as that takes; what arrives after its start makes a new
batch at the end of the queue, so that nobody can keep the others waiting.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from math import ceil
from threading import Lock
from typing import Any

from rism.runtime.arrays import Uint8
from rism.runtime.errors import InputError, RismError
from rism.runtime.image.loading import load_image, open_image
from rism.runtime.image_encoder import ImageState
from rism.runtime.lru_cache import LruCache
from rism.runtime.options import SegmentOptions
from rism.runtime.result.segmentation import Segmentation
from rism.runtime.segmenter import Segmenter
from rism.serve.errors import RequestError

_IMAGES_KEPT = 32
_IMAGE_BYTES_KEPT = 256 * 2**20


@dataclass(eq=False)
class ServedImage:
    """An uploaded image: decoded once, encoded at its first run.

    Attributes:
        digest: SHA-256 of the file.
        pixels: (H, W, 3) uint8, read-only.
    """

    digest: str
    pixels: Uint8
    _state: ImageState | None = None
    _lock: Lock = field(default_factory=Lock)

    @property
    def nbytes(self) -> int:
        """Of the pixels, for the cache."""
        return self.pixels.nbytes

    def state(self, segmenter: Segmenter) -> ImageState:
        """Return it encoded; the first of the threads that ask does the work."""
        with self._lock:
            if self._state is None:
                self._state = segmenter.set_image(self.pixels)
            return self._state


class ImageStore:
    """Images by the hash of their files: the same upload is decoded and encoded once."""

    def __init__(self, pool: Executor, max_pixels: int, hit: Callable[[], None]) -> None:
        self._pool, self._max_pixels, self._hit = pool, max_pixels, hit
        self._kept: LruCache[ServedImage] = LruCache(_IMAGES_KEPT, _IMAGE_BYTES_KEPT)
        self._decoding: dict[str, asyncio.Future[ServedImage]] = {}

    async def open(self, data: bytes) -> ServedImage:
        """Return the image in a file's bytes.

        Raises:
            InputError: not an image.
            RequestError: it has too many pixels.
        """
        digest = hashlib.sha256(data).hexdigest()
        found = self._kept.get(digest)
        if found is not None:
            self._hit()
            return found
        decoding = self._decoding.get(digest)
        if decoding is None:
            loop = asyncio.get_running_loop()
            decoding = loop.run_in_executor(self._pool, self._decode, digest, data)
            self._decoding[digest] = decoding
            decoding.add_done_callback(lambda _: self._decoding.pop(digest, None))
        else:
            self._hit()
        try:
            return await asyncio.shield(decoding)
        finally:
            del decoding  # an error would hold this frame, and this frame the error

    def _decode(self, digest: str, data: bytes) -> ServedImage:
        with open_image(io.BytesIO(data), "the image") as header:
            pixels_there = header.width * header.height
        if pixels_there > self._max_pixels:
            raise RequestError(
                413, f"the image has {pixels_there} pixels, at most {self._max_pixels} are read"
            )
        pixels = load_image(data)
        pixels.flags.writeable = False  # states keep a reference
        image = ServedImage(digest, pixels)
        self._kept.put(digest, image)
        return image


@dataclass(eq=False)
class _Job:
    expressions: Sequence[str]
    answer: asyncio.Future[list[Segmentation]]


@dataclass(eq=False)
class _Batch:
    key: tuple[Any, ...]
    image: ServedImage
    options: SegmentOptions
    segmenter: Segmenter
    due: float
    jobs: list[_Job] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(len(job.expressions) for job in self.jobs)


class Batcher:
    """The queue in front of the segmenter; of one event loop."""

    def __init__(
        self,
        pool: Executor,
        *,
        workers: int,
        queue: int,
        delay_s: float,
        max_batch: int,
        ran: Callable[[Sequence[Segmentation]], None],
    ) -> None:
        """Take a pool of at least `workers` threads; for the rest see `ServeSettings`.

        `ran` is called with the results of every run.
        """
        self._pool, self._free, self._queue = pool, workers, queue
        self._delay_s, self._max_batch, self._ran = delay_s, max_batch, ran
        self._workers = workers
        self._batches: deque[_Batch] = deque()
        self._open: dict[tuple[Any, ...], _Batch] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._expression_s = 0.1  # how long one takes, a running mean
        self._runs: set[asyncio.Task[None]] = set()
        self.depth = 0

    async def segment(
        self,
        segmenter: Segmenter,
        image: ServedImage,
        expressions: Sequence[str],
        options: SegmentOptions,
    ) -> list[Segmentation]:
        """Wait for a turn and return a result for each expression; leaves the queue when cancelled.

        Raises:
            RequestError: the queue is full.
            RismError: as of `Segmenter.segment`.
        """
        count = len(expressions)
        if self.depth + count > self._queue:
            wait = ceil(max(1.0, self.depth * self._expression_s / self._workers))
            raise RequestError(
                429, f"{self.depth} expressions are waiting, at most {self._queue} may",
                headers={"Retry-After": str(min(wait, 60))},
            )  # fmt: skip
        loop = asyncio.get_running_loop()
        job = _Job(expressions, loop.create_future())
        key = (image.digest, id(segmenter), _hashable(options))
        batch = self._open.get(key)
        if batch is None or batch.size + count > self._max_batch:
            due = loop.time() + self._delay_s
            batch = self._open[key] = _Batch(key, image, options, segmenter, due)
            self._batches.append(batch)
        batch.jobs.append(job)
        self.depth += count
        try:
            self._start_what_is_due()
            return await job.answer
        finally:
            self.depth -= count
            if job in batch.jobs:  # it is cancelled before its start
                batch.jobs.remove(job)
            del job  # as above

    def _start_what_is_due(self) -> None:
        loop = asyncio.get_running_loop()
        while self._free and self._batches:
            first = self._batches[0]
            if first.jobs and first.due > loop.time() and first.size < self._max_batch:
                if self._timer is None or self._timer.cancelled():
                    self._timer = loop.call_at(first.due, self._wake)
                return
            self._batches.popleft()
            if self._open.get(first.key) is first:
                del self._open[first.key]
            if first.jobs:
                self._free -= 1
                jobs, first.jobs = first.jobs, []
                run = loop.create_task(self._run(first, jobs))
                self._runs.add(run)  # the loop alone would let it be collected
                run.add_done_callback(self._runs.discard)

    def _wake(self) -> None:
        self._timer = None
        self._start_what_is_due()

    async def _run(self, batch: _Batch, jobs: list[_Job]) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            answers = await loop.run_in_executor(self._pool, self._segment, batch, jobs)
        except BaseException as error:
            answers = [error] * len(jobs)
        finally:
            self._free += 1
        count = sum(len(job.expressions) for job in jobs)
        self._expression_s += 0.2 * ((loop.time() - start) / count - self._expression_s)
        for job, answer in zip(jobs, answers, strict=True):
            if job.answer.done():
                continue
            if isinstance(answer, BaseException):
                job.answer.set_exception(answer)
            else:
                job.answer.set_result(answer)
        self._start_what_is_due()

    def _segment(
        self, batch: _Batch, jobs: Sequence[_Job]
    ) -> list[list[Segmentation] | BaseException]:
        """Run a batch, in a thread of the pool: an expression that occurs twice is run once."""
        try:
            texts = list(dict.fromkeys(text for job in jobs for text in job.expressions))
            found = batch.segmenter.segment(
                batch.image.state(batch.segmenter), texts, **batch.options
            )
            self._ran(found)
            results = dict(zip(texts, found, strict=True))
            return [[results[text] for text in job.expressions] for job in jobs]
        except InputError as error:
            if len(jobs) == 1:
                return [error]
            # One request's expression must not spoil another's answer.
            return [answer for job in jobs for answer in self._segment(batch, [job])]
        except RismError as error:
            return [error] * len(jobs)


def _hashable(options: Mapping[str, object]) -> tuple[tuple[str, object], ...]:
    return tuple(sorted(options.items()))
