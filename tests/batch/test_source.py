"""What SOURCE is, what is refused before a run begins, and what becomes a row's error."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rism.batch.source import open_source, read_unit
from rism.batch.tables import digests
from rism.runtime.errors import InputError

NONE = digests([])


def read(
    source: Path, expressions: list[str] | None = None, done: np.ndarray = NONE
) -> list[dict[str, Any]]:
    """All rows of a SOURCE, without the time that they took."""
    found = open_source(str(source), expressions)
    units, _ = found.left(done)
    tables = [
        each
        for unit in units
        for each in read_unit(unit, found.kind, found.store, found.expressions, done)
    ]
    return [
        {name: value for name, value in row.items() if name != "read_s"}
        for each in tables
        for row in each.to_pylist()
    ]


def row(name: str, **more: Any) -> dict[str, Any]:
    empty = {"image": None, "path": None, "expressions": ["red"], "error": None}
    return {"id": name, **empty, **more}


def lines(file: Path, *records: Any) -> Path:
    file.write_text("".join(json.dumps(each) + "\n" for each in records))
    return file


def test_parquet(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": [7, 8, 9],
            "image": [b"data", None, b"more"],
            "expressions": [["red", "red"], ["blue"], []],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    empty = "the list of expressions is empty, expected at least one"
    rows = [
        row("7", image=b"data"),
        row("8", expressions=["blue"], error="its image is null"),
        row("9", image=b"more", expressions=[None], error=empty),
    ]
    assert read(tmp_path) == rows
    assert read(tmp_path / "a.parquet", done=np.sort(digests(["7", "8"]))) == rows[2:]
    pq.write_table(
        pa.table({"id": ["x"], "image": [{"bytes": None, "path": "a.png"}]}), tmp_path / "b.parquet"
    )
    assert read(tmp_path / "b.parquet", ["red"]) == [row("x", path="a.png")]


def test_json_lines(tmp_path: Path) -> None:
    file = lines(
        tmp_path / "list.jsonl",
        {"id": "a", "image": "a.png", "expressions": "red"},
        {"id": 2, "image": 3, "expressions": ["red"]},
        {"id": "c", "image": "c.png", "expressions": ["red", 5]},
    )
    wrong = "expressions is ['red', 5], expected a list of texts"
    assert read(file) == [
        row("a", path="a.png"),
        row("2", error="its image is no path, expected one as text"),
        row("c", path="c.png", expressions=[None], error=wrong),
    ]


def test_lines_that_are_appended_later_are_not_read(tmp_path: Path) -> None:
    file = lines(tmp_path / "list.jsonl", {"id": "a", "image": "a.png"})
    source = open_source(str(file), ["red"])
    with file.open("a") as more:
        more.write('{"id": "b", "ima')
    [unit] = source.units
    tables = list(read_unit(unit, source.kind, source.store, source.expressions, NONE))
    assert [table.column("id").to_pylist() for table in tables] == [["a"]]


def write_tar(file: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(file, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_tars(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "0.tar",
        [
            ("x/1.png", b"one"),
            ("x/1.json", b'{"expressions": ["red", "blue"]}'),
            ("x/2.jpg", b"two"),
            ("x/2.txt", b"red\n\n"),
            ("x/3.txt", b"red"),
            ("x/1.png", b"again"),
        ],
    )
    rows = read(tmp_path)
    assert rows == [
        row("0.tar/x/1", image=b"one", expressions=["red", "blue"]),
        row("0.tar/x/2", image=b"two"),
        row("0.tar/x/3", error="the tar has no image for this key"),
        row(
            "0.tar/x/1#2",
            expressions=[None],
            error="the key occurs 2 times in the tar, its files must lie together",
        ),
    ]
    assert read(tmp_path, done=np.sort(digests(["0.tar/x/1", "0.tar/x/3"]))) == [rows[1], rows[3]]


def test_a_tar_that_is_cut_short_loses_only_its_end(tmp_path: Path) -> None:
    file = tmp_path / "0.tar"
    write_tar(file, [(f"{number}.png", bytes(2000)) for number in range(9)])
    file.write_bytes(file.read_bytes()[:6000])
    rows = read(file, ["red"])
    assert [each["id"] for each in rows[:2]] == ["0.tar/0", "0.tar/1"]
    assert rows[-1]["id"] == "0.tar" and "damaged, later images are lost" in rows[-1]["error"]


def test_a_folder(images: Callable[[int], Path]) -> None:
    folder = images(3)
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "_part.png").write_bytes(b"")
    (folder / "deep").mkdir()
    (folder / "deep/x.JPG").write_bytes(b"")
    source = open_source(str(folder), ["red"])
    units, left = source.left(np.sort(digests(["001.png"])))
    assert [unit.name for unit in units] == ["000.png", "002.png", "deep/x.JPG"] and left == 3


def table(name: str = "a.parquet", **columns: Any) -> Callable[[Path], None]:
    return lambda place: pq.write_table(pa.table(columns), place / name)


def file(name: str, data: bytes | str) -> Callable[[Path], None]:
    raw = data.encode() if isinstance(data, str) else data
    return lambda place: (place / name).write_bytes(raw) and None


def both(*makers: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda place: [make(place) for make in makers] and None


GOOD = {"id": ["a", "b"], "image": [b"x", b"y"]}
ONE = '{"id": "a", "image": "a.png"}\n'


@pytest.mark.parametrize(
    ("make", "expressions", "message"),
    [
        (table(image=[b"x"]), ["red"], "a.parquet has no column id (it has image), expected id"),
        (table(**GOOD), None, "no column expressions (it has id, image), expected id, image"),
        (
            table(**GOOD, expressions=[["red"], ["red"]]),
            ["red"],
            "a.parquet has a column expressions, and --expression is given: expected one of them",
        ),
        (table(**{**GOOD, "id": [0.5, 1.5]}), ["red"], "column id of a.parquet is of type double"),
        (table(**{**GOOD, "image": [1, 2]}), ["red"], "column image of a.parquet is of type int64"),
        (table(**GOOD, expressions=[1, 2]), None, "expressions of a.parquet is of type int64"),
        (table(**{**GOOD, "id": ["a", None]}), ["red"], "row 1 of row group 0 of a.parquet has no"),
        (
            table(**{**GOOD, "id": ["a", "a"]}),
            ["red"],
            "row 1 of a.parquet has the same id as row 0 of a.parquet, expected every id once",
        ),
        (file("a.parquet", "no"), ["red"], "a.parquet cannot be read ("),
        (
            both(table(**GOOD), table("b.parquet", **GOOD)),
            ["red"],
            "row 0 of b.parquet has the same id as row 0 of a.parquet, expected every id once; 2",
        ),
        (file("l.jsonl", ONE + "{"), ["red"], "line 2 of l.jsonl is not JSON, expected an object"),
        (file("l.jsonl", "[" * 100_000), ["red"], "line 1 of l.jsonl is not JSON"),
        (file("l.jsonl", '{"image": "a.png"}'), ["red"], "line 1 of l.jsonl has no id, expected"),
        (file("l.jsonl", ONE), None, "line 1 of l.jsonl has no expressions, expected a list, or"),
        (file("l.jsonl", ONE + ONE), ["red"], "row 1 of l.jsonl has the same id as row 0 of l.js"),
        (file("l.jsonl", ""), ["red"], "has no rows, expected at least one"),
        (file("a.png", b""), None, "a folder of images needs --expression TEXT"),
        (file("a.doc", b""), ["red"], "has nothing to read, expected .parquet, .jsonl or .tar"),
        (both(file("l.jsonl", ONE), file("a.png", b"")), ["red"], "of 2 kinds (JSONL, image)"),
        (lambda place: place.rmdir(), ["red"], "is not there: check the path"),
    ],
)  # fmt: skip
def test_what_is_refused(
    make: Callable[[Path], None], expressions: list[str] | None, message: str, tmp_path: Path
) -> None:
    place = tmp_path / "source"
    place.mkdir()
    make(place)
    with pytest.raises(InputError) as caught:
        open_source(str(place), expressions)
    assert message in str(caught.value)


def test_keys_of_a_store_are_not_shown(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="SOURCE 's4://bucket/x' is in no store") as caught:
        open_source("s4://KEY:SECRET@bucket/x?token=TOKEN", ["red"])
    assert not {"KEY", "SECRET", "TOKEN"} & set(str(caught.value).replace(":", " ").split())
    assert "SECRET" not in str(caught.value)
