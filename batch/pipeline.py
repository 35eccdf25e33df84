"""A run of `rism map`: SOURCE through Ray Data to DEST."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import pyarrow as pa
import ray  # by rism.batch.cluster, which sets its environment before
import ray.data

import rism
from rism.batch.actor import RismActor
from rism.batch.cluster import connected
from rism.batch.destination import (
    images_in_parts,
    open_destination,
    write_manifest,
    write_part,
    written_ids,
)
from rism.batch.images import decode
from rism.batch.readers import ROWS_AT_ONCE, Unit
from rism.batch.results import encode
from rism.batch.source import Source, open_source, read_unit
from rism.batch.tables import READ, Digests, Store, table
from rism.runtime.bundle.reader import Bundle, resolve_bundle
from rism.runtime.engines.cpu_threads import SMALL_BUNDLE_BYTES
from rism.runtime.errors import InputError, RismError
from rism.runtime.options import SegmentOptions

Progress = Callable[[int, int | None, float], None]
"""Called with the images done, all of them (None if that is not known) and images per second."""

FORMAT = 1
STAGES = ("read", "decode", "segment", "encode", "write")
# Shares of a core that Ray reserves: where actors compute on the CPU, tasks take what is left.
# Those of all stages must fit on what an actor leaves of a single core.
_ACTOR_SHARE = 0.75
_TASK_SHARE = 1 / 16
_PART_IMAGES = (32, 2048)
_PARTS = 200
# Seconds from one listing of DEST to the next, for the progress.
_LOCAL_LISTING_S = 1.0
_LISTING_S = 20.0
# Settings that change what is computed, besides options and the bundle.
_DECIDING = ("template", "capture", "precision")


@dataclass(frozen=True, kw_only=True)
class BatchRun:
    """What `run_batch` does.

    Attributes:
        source: see docs/batch.md.
        destination: a folder, or a URL of a store that pyarrow opens.
        expressions: what to find in every image; None where rows have their own.
        root: where images named by path are; None for the folder of SOURCE.
        bundle: see `Segmenter.from_bundle`.
        options: see `SegmentOptions`.
        settings: other arguments of `Segmenter.from_bundle`.
        threads: CPU threads of each actor; None for one, of a bundle above 1 GiB for all.
        actors: their number; None for one on each GPU, or as many as the threads allow.
        part_images: images of a part file; None for a two-hundredth, 32 to 2048.
        resume: continue the run that DEST holds.
        address: of a Ray cluster; None for a Ray of this process.
    """

    source: str
    destination: str
    expressions: tuple[str, ...] | None = None
    root: str | None = None
    bundle: str | None = None
    options: SegmentOptions = field(default_factory=SegmentOptions)
    settings: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    actors: int | None = None
    part_images: int | None = None
    resume: bool = False
    address: str | None = None


@dataclass
class BatchSummary:
    """What a run did.

    Attributes:
        images, rows, errors: written by this run; rows with an error among them.
        skipped: images that were there before.
        parts: files.
        seconds: from the first block to the last.
        providers, precisions: of the actors.
        busy_s: seconds of work by stage, of all processes.
        processes: how many may work on a stage at once.
    """

    skipped: int = 0
    images: int = 0
    rows: int = 0
    errors: int = 0
    parts: int = 0
    seconds: float = 0.0
    providers: set[str] = field(default_factory=set)
    precisions: set[str] = field(default_factory=set)
    busy_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    processes: dict[str, int] = field(default_factory=dict)

    def add(self, written: Mapping[str, Any]) -> None:
        """Count a part that was written."""
        self.parts += 1
        for name in ("images", "rows", "errors"):
            setattr(self, name, getattr(self, name) + written[name])
        self.providers.add(written["provider"])
        self.precisions.add(written["precision"])
        for stage in STAGES:
            self.busy_s[stage] += written[f"{stage}_s"] or 0.0

    @property
    def rates(self) -> dict[str, float]:
        """Rows per second that each stage could do with all its processes, were it alone."""
        return {
            stage: self.rows / seconds * self.processes.get(stage, 1)
            for stage, seconds in self.busy_s.items()
            if seconds > 0
        }

    @property
    def slowest(self) -> str | None:
        """The stage with the lowest rate; None if nothing was done."""
        rates = self.rates
        return min(rates, key=rates.__getitem__) if rates else None


def run_batch(run: BatchRun, progress: Progress = lambda *_: None) -> BatchSummary:
    """Segment every image of SOURCE, and write a row for each (id, expression) to DEST.

    Everything that can be checked is checked before Ray starts. A Ray that already runs in this
    process is used as it is.

    Raises:
        RismError: SOURCE, DEST, the bundle or the cluster cannot be used, or work failed.
    """
    bundle = Bundle.open(resolve_bundle(run.bundle))
    source = open_source(run.source, run.expressions)
    root = source.store if run.root is None else Store.open(run.root, "--root")
    store = Store.open(run.destination, "DEST")
    metadata = {"version": rism.__version__, "bundle": bundle.digest}
    manifest = {
        "format": FORMAT,
        "source": source.store.uri,
        "kind": source.kind,
        "expressions": source.expressions and list(source.expressions),
        "bundle": bundle.digest,
        "options": dict(run.options),
        "settings": {name: run.settings.get(name) for name in _DECIDING},
    }
    with open_destination(store, manifest, resume=run.resume) as done:
        summary = BatchSummary(skipped=len(done))
        units, left = source.left(done)
        if left == 0:
            return summary
        with connected(run.address):
            resources = _resources(run, bundle)
            summary.processes = {
                **dict.fromkeys(STAGES, resources.tasks),
                "segment": resources.actors,
            }
            write_manifest(store, manifest)
            rows = _rows(source, units, done, resources)
            encoded = _segmented(rows, run, bundle, root, resources)
            size = min(max((left or 0) // _PARTS, _PART_IMAGES[0]), _PART_IMAGES[1])
            sink = PartsDatasink(store, metadata, run.part_images or size)
            start = monotonic()
            with _told(store, left, progress):
                # Fewer CPUs than encoding: Ray fuses equals, and would keep a part's masks.
                needs = {"num_cpus": resources.task["num_cpus"] / 2}
                encoded.write_datasink(sink, ray_remote_args=needs)
            summary.seconds = monotonic() - start
            for written in sink.written:
                summary.add(written)
        there = len(written_ids(store)) - len(done)
        if left not in (None, there):
            raise RismError(f"{there} of {left} images were written: --resume does the others")
    return summary


@dataclass(frozen=True)
class _Resources:
    """What Ray reserves.

    Attributes:
        actors: their number.
        threads: of each; None for all of its machine.
        actor: arguments of `map_batches` for them.
        task: arguments of `map_batches` for the other stages.
        tasks: how many tasks of a stage run at once.
    """

    actors: int
    threads: int | None
    actor: Mapping[str, float]
    task: Mapping[str, Any]
    tasks: int


def _resources(run: BatchRun, bundle: Bundle) -> _Resources:
    """Choose the number of actors by what the cluster has.

    Raises:
        InputError: so many do not fit.
    """
    total = ray.cluster_resources()
    cores, gpus = int(total.get("CPU", 1)), int(total.get("GPU", 0))
    if run.settings.get("provider") in ("cpu", "onnxruntime-cpu"):
        gpus = 0
    threads, needs = run.threads, {"num_gpus": 1.0, "num_cpus": 1.0}
    if not gpus:
        small = sum(info.size for info in bundle.manifest.files.values()) < SMALL_BUNDLE_BYTES
        nodes = [int(each["Resources"].get("CPU", 0)) for each in ray.nodes() if each["Alive"]]
        threads = threads or (1 if small else max(nodes))
        needs = {"num_cpus": _ACTOR_SHARE * threads}
    actors = run.actors or gpus or max(1, cores // (threads or 1))
    if actors > (gpus or cores / (threads or 1)):
        have = f"{gpus} GPUs" if gpus else f"{cores} cores"
        raise InputError(
            f"{actors} actors of {'a GPU' if gpus else f'{threads} threads'} do not fit on {have}: "
            "fewer --actors or --threads"
        )
    tasks = max(1, round(cores - actors * needs["num_cpus"]))
    task = {
        "num_cpus": _TASK_SHARE,
        "concurrency": tasks,
        "batch_size": None,
        "batch_format": "pyarrow",
    }
    return _Resources(actors, threads, needs, task, tasks)


def _rows(
    source: Source, units: list[Unit], done: Digests, resources: _Resources
) -> ray.data.Dataset:
    """Return the rows that are to be done, in blocks of a few images."""
    if source.kind == "image":
        rows = [
            {"id": each.name, "path": each.name, "expressions": source.expressions}
            for each in units
        ]
        starts = range(0, len(rows), ROWS_AT_ONCE)
        return ray.data.from_arrow(
            [table(rows[each : each + ROWS_AT_ONCE], READ) for each in starts]
        )
    read = partial(
        _read,
        kind=source.kind,
        store=source.store,
        expressions=source.expressions,
        done=ray.put(done),
    )
    return ray.data.from_arrow([pa.Table.from_pylist([vars(each)]) for each in units]).map_batches(
        read, **resources.task
    )


def _read(
    units: pa.Table, *, kind: str, store: Store, expressions: tuple[str, ...] | None, done: Any
) -> Iterator[pa.Table]:
    known = ray.get(done)
    for unit in units.to_pylist():
        yield from read_unit(Unit(**unit), kind, store, expressions, known)


def _segmented(
    rows: ray.data.Dataset, run: BatchRun, bundle: Bundle, root: Store, resources: _Resources
) -> ray.data.Dataset:
    """Return the encoded results, a row for each image."""
    # Other machines have no such folder of a cache, but the same hub or shared disk.
    place = str(bundle.path) if run.bundle is None or Path(run.bundle).is_dir() else run.bundle
    settings = {**run.settings, "threads": resources.threads, "digest": bundle.digest}
    return (
        rows.map_batches(partial(decode, root=root), **resources.task)
        .map_batches(
            RismActor,
            fn_constructor_args=[place if run.bundle is not None else None],
            fn_constructor_kwargs={**settings, "options": run.options},
            compute=ray.data.ActorPoolStrategy(size=resources.actors),
            batch_size=None,
            batch_format="pyarrow",
            **resources.actor,
        )
        .map_batches(encode, **resources.task)
    )


class PartsDatasink(ray.data.Datasink):  # type: ignore[misc]  # Ray has no types for it
    """Writes the images of each of its tasks to parts.

    Attributes:
        written: of each part, what `write_part` returns; at the end.
    """

    def __init__(self, store: Store, metadata: Mapping[str, str], images: int) -> None:
        """Write parts of at most so many images to DEST."""
        self._store, self._metadata, self._images = store, metadata, images
        self.written: list[dict[str, Any]] = []

    @property
    def min_rows_per_write(self) -> int:
        """Images that Ray collects for a task."""
        return self._images

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> list[dict[str, Any]]:  # noqa: ARG002
        """Write parts; a repeated task writes the same ones."""
        full = [each for each in blocks if len(each)]
        rows = pa.concat_tables(full) if full else pa.table({})
        return [
            write_part(rows[at : at + self._images], store=self._store, metadata=self._metadata)
            for at in range(0, len(rows), self._images)
        ]

    def on_write_complete(self, write_result: Any) -> None:
        """Keep what the tasks returned."""
        self.written = [each for returned in write_result.write_returns for each in returned]


@contextmanager
def _told(store: Store, left: int | None, progress: Progress) -> Iterator[None]:
    """Tell from time to time how many images DEST has gained."""
    start, before, ended = monotonic(), images_in_parts(store), threading.Event()

    def tell() -> None:
        while not ended.wait(_LOCAL_LISTING_S if store.local else _LISTING_S):
            with contextlib.suppress(OSError, pa.ArrowException):
                done = images_in_parts(store) - before
                progress(done, left, done / (monotonic() - start))

    progress(0, left, 0.0)
    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
