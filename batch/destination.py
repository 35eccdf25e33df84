"""DEST: part files that appear whole, the run's manifest, and what is already written.

A part is named by a hash of its ids and their number, so that a task that is run again writes the
same file again, and takes its name when it is complete. All rows of an id are in one part: what is
written is known from the parts alone, and no other record can disagree with them.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.fs import FileSelector, FileType

from rism.batch.results import to_rows
from rism.batch.tables import Digests, Store, digests
from rism.runtime.atomic_write import write_atomically
from rism.runtime.errors import InputError, OutputError, one_line

# Names with "_" or "." in front are no data, for pyarrow, Spark and DuckDB alike.
MANIFEST = "_rism.json"
_LOCK = "_rism.lock"
_READERS = 16
_PART = re.compile(r"part-[0-9a-f]{24}-\d{1,9}\.parquet")
_STAGES = ("read_s", "decode_s", "segment_s", "encode_s")


def write_part(batch: pa.Table, *, store: Store, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Write a part file; run again with the same images it writes the same file.

    Args:
        batch: what `encode` returns, a row for each image.
        store: DEST.
        metadata: of the file; provider and precision are added.

    Returns:
        Name of the part; counts of images, rows and rows with an error; provider and precision;
        seconds of each stage for these images, such as `decode_s`.

    Raises:
        OutputError: it cannot be written.
    """
    start = perf_counter()
    batch = batch.sort_by("id")
    rows = to_rows(batch)
    ran = {
        name: ", ".join(sorted(each for each in pc.unique(batch.column(name)).to_pylist() if each))
        for name in ("provider", "precision")
    }
    name = _write(store, rows, {**metadata, **ran})
    sums = {each: pc.sum(batch.column(each)).as_py() for each in _STAGES}
    errors = len(rows) - rows.column("error").null_count
    written = {"part": name, "images": len(batch), "rows": len(rows), "errors": errors}
    return {**written, **ran, **sums, "write_s": perf_counter() - start}


def _write(store: Store, rows: pa.Table, metadata: Mapping[str, str]) -> str:
    """Write rows, sorted by their ids, to the part that has the ids' name."""
    ids = pc.unique(rows.column("id")).to_pylist()
    digest = hashlib.blake2b(digests(ids).tobytes(), digest_size=12).hexdigest()
    name = f"part-{digest}-{len(ids)}.parquet"
    keyed = {f"rism.{key}": value for key, value in metadata.items()}
    data = io.BytesIO()
    pq.write_table(rows.replace_schema_metadata(keyed), data, compression="zstd")
    _put(store, name, data.getbuffer())
    return name


def _put(store: Store, name: str, data: bytes | memoryview) -> None:
    if store.local:
        write_atomically(store.below(name), bytes(data))
        return
    try:
        if store.files.type_name == "hdfs":  # a file shows while it is written
            with store.files.open_output_stream(store.below(f".{name}")) as file:
                file.write(data)
            store.files.move(store.below(f".{name}"), store.below(name))
            return
        # An object appears when its upload is complete.
        with store.files.open_output_stream(store.below(name)) as file:
            file.write(data)
    except (OSError, pa.ArrowException) as error:
        raise OutputError(
            f"cannot write {one_line(store.uri)}/{name}: {one_line(error, limit=120)}"
        ) from None


@contextmanager
def open_destination(
    store: Store, manifest: Mapping[str, Any], *, resume: bool
) -> Iterator[Digests]:
    """Hold DEST for a run, and yield the digests of the ids that it has, sorted.

    Args:
        store: DEST; it is made if it is not there.
        manifest: what decides about the rows; it must be that of the earlier run.
        resume: whether DEST may hold a run.

    Raises:
        OutputError: it cannot be made or read, or another process is writing to it.
        InputError: it holds a run and `resume` is not given, another run, or other files.
    """
    name = one_line(store.uri)
    try:
        found = store.files.get_file_info(FileSelector(store.path, allow_not_found=True))
        names = [each.base_name for each in found if each.base_name != _LOCK]
        if MANIFEST in names:
            _check_manifest(store, manifest, resume=resume)
        elif names:
            raise InputError(
                f"DEST '{name}' has other files ({one_line(names[0], limit=60)}), expected an "
                "empty or new folder"
            )
        store.files.create_dir(store.path)
        with _locked(store):
            _remove_unfinished(store)
            yield written_ids(store)
    except (OSError, pa.ArrowException) as error:
        raise OutputError(f"DEST '{name}' cannot be used: {one_line(error, limit=120)}") from None


def write_manifest(store: Store, manifest: Mapping[str, Any]) -> None:
    """Say whose run DEST is, before its first part.

    Raises:
        OutputError: it cannot be written.
    """
    _put(store, MANIFEST, f"{json.dumps(manifest, indent=2)}\n".encode())


def _check_manifest(store: Store, manifest: Mapping[str, Any], *, resume: bool) -> None:
    name = one_line(store.uri)
    if not resume:
        raise InputError(
            f"DEST '{name}' holds a run: --resume continues it, or choose another DEST"
        )
    try:
        with store.files.open_input_stream(store.below(MANIFEST)) as file:
            earlier = json.loads(file.read())
        differ = [key for key in manifest if earlier[key] != manifest[key]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            f"DEST '{name}': {MANIFEST} is not that of a run, expected what rism map wrote"
        ) from None
    if differ:
        key = differ[0]
        raise InputError(
            f"DEST '{name}' holds another run: its {key} is "
            f"{one_line(json.dumps(earlier[key]), limit=80)}, this one's "
            f"{one_line(json.dumps(manifest[key]), limit=80)}: choose another DEST"
        )


def _locked(store: Store) -> Any:
    """Hold a lock that the system releases when this process ends; object stores have none."""
    if not store.local:
        return nullcontext()
    from filelock import FileLock, Timeout

    lock = FileLock(store.below(_LOCK))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(
            f"DEST '{one_line(store.uri)}' is in use by another rism map: wait for its end"
        ) from None


def written_ids(store: Store) -> Digests:
    """Return the digests of all ids in the parts, sorted; no id is in two parts afterwards.

    A process of a run that was killed may still have finished a part after the next run had looked
    at DEST. Whatever is then written twice is taken out of one of the parts here.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        names = _parts(store)
        ids = [digests(each) for each in pool.map(lambda name: _part_ids(store, name), names)]
    found = np.sort(np.concatenate([*ids, np.array([], "S16")]))
    twice = np.unique(found[1:][found[1:] == found[:-1]])
    if not len(twice):
        return found
    taken: set[bytes] = set()
    for name, own in zip(names, ids, strict=True):
        repeated = np.isin(own, twice)
        if not repeated.any():
            continue
        again = np.array([each in taken for each in own])
        if again.any():
            _take_out(store, name, again)
        else:
            taken |= set(own[repeated])
    return written_ids(store)


def _take_out(store: Store, name: str, again: Any) -> None:
    """Replace a part by one without some of its ids; the new one is there before the old goes."""
    if not again.all():
        with store.files.open_input_file(store.below(name)) as file:
            rows = pq.read_table(file)
        ids = np.array(pc.unique(rows.column("id")).to_pylist(), object)
        kept = rows.filter(pc.is_in(rows.column("id"), pa.array(ids[~again], pa.string())))
        given = rows.schema.metadata or {}
        own = {
            key.decode().removeprefix("rism."): value.decode()
            for key, value in given.items()
            if key.startswith(b"rism.")
        }
        _write(store, kept, own)
    store.files.delete_file(store.below(name))


def _parts(store: Store) -> list[str]:
    found = store.files.get_file_info(FileSelector(store.path))
    return sorted(
        each.base_name
        for each in found
        if each.type == FileType.File and _PART.fullmatch(each.base_name)
    )


def images_in_parts(store: Store) -> int:
    """Return how many images the parts have, by their names."""
    return sum(int(name.rpartition("-")[2].partition(".")[0]) for name in _parts(store))


def _part_ids(store: Store, name: str) -> list[str]:
    try:
        with store.files.open_input_file(store.below(name)) as file:
            ids = pq.read_table(file, columns=["id"]).column("id")
        return list(pc.unique(ids).to_pylist())
    except (OSError, pa.ArrowException, KeyError) as error:
        raise OutputError(
            f"{one_line(store.uri)}/{name} cannot be read ({one_line(error, limit=100)}): "
            "delete it, and --resume writes its rows again"
        ) from None


def _remove_unfinished(store: Store) -> None:
    """Delete temporary files of processes that were killed while they wrote."""
    if store.local:
        for file in Path(store.path).glob(".part-*.tmp-*"):
            file.unlink(missing_ok=True)
