"""DEST: parts that appear whole, ids that are in one part only, and whose run it is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rism.batch.destination import (
    MANIFEST,
    open_destination,
    write_manifest,
    write_part,
    written_ids,
)
from rism.batch.tables import ENCODED, Store, digests
from rism.runtime.errors import InputError, OutputError, RismError
from tests.batch.conftest import rows_of

RUN = {"bundle": "abc", "expressions": ["red"], "source": "/images"}


def store(place: Path) -> Store:
    return Store.open(str(place), "DEST")


def write(place: Path, *ids: str) -> dict[str, Any]:
    """Write a part with two expressions for each id."""
    results = [{"expression": text, "area_px": len(text)} for text in ("red", "blue")]
    rows = [{"id": each, "results": results, "provider": "cpu"} for each in ids]
    batch = pa.Table.from_pylist(rows, schema=ENCODED)
    return write_part(batch, store=store(place), metadata={"bundle": "abc"})


def test_a_part_has_the_name_of_its_ids(tmp_path: Path) -> None:
    first = write(tmp_path, "b", "a")
    assert (first["images"], first["rows"], first["errors"]) == (2, 4, 0)
    again = write(tmp_path, "a", "b")
    assert again["part"] == first["part"] and len(list(tmp_path.iterdir())) == 1
    assert write(tmp_path, "a", "c")["part"] != first["part"]
    assert pq.read_schema(tmp_path / first["part"]).metadata == {
        b"rism.bundle": b"abc",
        b"rism.provider": b"cpu",
        b"rism.precision": b"",
    }


def test_what_two_runs_wrote_is_there_once(tmp_path: Path) -> None:
    write(tmp_path, "a", "b", "c")
    write(tmp_path, "b", "c", "d")
    write(tmp_path, "c", "b")
    write(tmp_path, "e")
    ids = written_ids(store(tmp_path))
    assert list(ids) == sorted(digests("abcde"))
    found = [(row["id"], row["expression"]) for row in rows_of(tmp_path)]
    assert found == [(each, text) for each in "abcde" for text in ("blue", "red")]


def test_taking_out_can_be_interrupted(tmp_path: Path) -> None:
    write(tmp_path, "a", "b")
    part = tmp_path / str(write(tmp_path, "b", "c")["part"])
    shutil.copy(part, tmp_path / "kept")
    written_ids(store(tmp_path))
    shutil.move(tmp_path / "kept", part)  # killed before the old part was deleted
    assert list(written_ids(store(tmp_path))) == sorted(digests("abc"))
    assert [row["id"] for row in rows_of(tmp_path)] == ["a", "a", "b", "b", "c", "c"]


def claim(place: Path, *, resume: bool = False, **changed: Any) -> list[bytes]:
    with open_destination(store(place), {**RUN, **changed}, resume=resume) as done:
        write_manifest(store(place), {**RUN, **changed})
        return list(done)


def test_whose_run_it_is(tmp_path: Path) -> None:
    place = tmp_path / "new/dest"
    assert claim(place) == []
    write(place, "a")
    (place / ".part-x.tmp-1").write_bytes(b"half")
    with pytest.raises(InputError, match="holds a run: --resume continues it"):
        claim(place)
    assert claim(place, resume=True) == list(digests("a"))
    assert not (place / ".part-x.tmp-1").exists()
    with pytest.raises(InputError, match=r'another run: its bundle is "abc", this one\'s "x"'):
        claim(place, resume=True, bundle="x")
    for text in ("{", "[]", "{}"):
        (place / MANIFEST).write_text(text)
        with pytest.raises(InputError, match="is not that of a run"):
            claim(place, resume=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("")
    with pytest.raises(InputError, match=r"has other files \(mine.txt\)"):
        claim(other, resume=True)
    with pytest.raises(OutputError, match="cannot be used"):
        claim(other / "mine.txt" / "x")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        open_destination(store(tmp_path), RUN, resume=False),
        pytest.raises(OutputError, match="in use by another rism map"),
    ):
        claim(tmp_path, resume=True)
    assert not (tmp_path / MANIFEST).exists()
    assert claim(tmp_path) == [] and json.loads((tmp_path / MANIFEST).read_text()) == RUN


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    part = tmp_path / str(write(tmp_path, "a")["part"])
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(OutputError, match=f"{part.name} cannot be read .* --resume writes its"):
        written_ids(store(tmp_path))


def test_a_full_disk_leaves_no_part(tmp_path: Path) -> None:
    full = store(Path("/dev/full"))
    with pytest.raises(RismError, match="cannot write /dev/full"):
        write_part(
            pa.Table.from_pylist([{"id": "a", "results": []}], schema=ENCODED),
            store=full,
            metadata={},
        )
