"""Runs of `rism map` on a Ray of this machine: what is written, and what survives."""

import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rism.batch import RismActor, cluster, encode, to_rows
from rism.batch.pipeline import BatchRun, run_batch
from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines.cpu_threads import cpu_count
from rism.runtime.errors import InputError, OutputError, ProviderError
from tests.batch.conftest import rows_of
from tests.cli.conftest import invoke
from tests.paths import EXAMPLES, ROOT

TEXTS = ("red", "blue")
Images = Callable[[int], Path]


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray that the runs of this module share."""
    import ray

    cluster.start(None)
    yield ray
    ray.shutdown()


@pytest.fixture
def run(ray: Any, tiny_bundle: Path, tmp_path: Path) -> BatchRun:
    return BatchRun(
        source=str(tmp_path / "images"),
        destination=str(tmp_path / "dest"),
        expressions=TEXTS,
        bundle=str(tiny_bundle),
        settings={"provider": "cpu"},
        threads=1,
        actors=1,
        part_images=4,
    )


def names(run: BatchRun) -> list[tuple[str, str]]:
    return [(row["id"], row["expression"]) for row in rows_of(Path(run.destination))]


def test_a_folder(run: BatchRun, images: Images, ray: Any) -> None:
    folder = images(9)
    (folder / "004.png").write_bytes(b"broken")
    told: list[tuple[int, int | None]] = []
    summary = run_batch(run, lambda done, total, _: told.append((done, total)))
    every = [(f"{number:03}.png", text) for number in range(9) for text in sorted(TEXTS)]
    assert names(run) == every
    rows = rows_of(Path(run.destination))
    assert [row["id"] for row in rows if row["error"]] == ["004.png", "004.png"]
    assert all(row["area_px"] for row in rows if not row["error"])
    assert (summary.images, summary.rows, summary.errors, summary.parts) == (9, 18, 2, 3)
    assert summary.slowest in summary.rates and set(summary.rates) >= {"decode", "segment"}
    assert told[0] == (0, 9)
    for part in Path(run.destination).glob("part-*"):
        metadata = pq.read_schema(part).metadata
        digest = Bundle.open(str(run.bundle)).digest.encode()
        assert metadata[b"rism.bundle"] == digest
        assert (metadata[b"rism.provider"], metadata[b"rism.precision"]) == (b"cpu", b"float32")

    images(12)  # SOURCE has grown
    again = run_batch(replace(run, resume=True, actors=2))
    assert (again.skipped, again.images, again.errors) == (9, 3, 0)
    found = [row for row in rows_of(Path(run.destination)) if row["id"] != "004.png"]
    kept = [f"{number:03}.png" for number in range(12) if number != 4]
    given = pa.table(
        {
            "id": kept,
            "image": [(folder / name).read_bytes() for name in kept],
            "expressions": [sorted(TEXTS)] * 11,
        }
    )
    actor = RismActor(run.bundle, provider="cpu", threads=1)
    assert found == to_rows(encode(actor(given))).to_pylist()
    assert run_batch(replace(run, resume=True)).parts == 0


def test_rows_of_parquet(run: BatchRun, images: Images, tmp_path: Path) -> None:
    folder = images(6)
    table = pa.table(
        {
            "id": [*range(6)],
            "image": [f"{number:03}.png" for number in range(6)],
            "expressions": [["red"], ["blue", "red"], [], ["red"], ["red"], ["red"]],
        }
    )
    pq.write_table(table, tmp_path / "list.parquet", row_group_size=2)
    own = replace(run, source=str(tmp_path / "list.parquet"), root=str(folder), expressions=None)
    own = replace(own, actors=cpu_count())  # reading and writing need none of their cores
    run_batch(own)
    rows = rows_of(Path(run.destination))
    assert [(row["id"], row["expression"]) for row in rows] == [
        ("0", "red"), ("1", "blue"), ("1", "red"), ("2", None), ("3", "red"), ("4", "red"),
        ("5", "red"),
    ]  # fmt: skip
    assert [row["error"] for row in rows if row["error"]] == [
        "the list of expressions is empty, expected at least one"
    ]


def test_a_killed_actor_loses_nothing(run: BatchRun, images: Images) -> None:
    count, killed = 120, list[int]()
    images(count)

    def kill() -> None:
        while not [*Path(run.destination).glob("part-*")]:
            time.sleep(0.01)
        others = psutil.Process().children(recursive=True)
        alive = [each for each in others if each.status() != psutil.STATUS_ZOMBIE]
        [actor] = [each for each in alive if "RismActor" in " ".join(each.cmdline())]
        killed.append(actor.pid)
        actor.kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    summary = run_batch(run)
    assert killed and summary.images == count
    assert names(run) == [
        (f"{number:03}.png", text) for number in range(count) for text in sorted(TEXTS)
    ]


def test_what_fails_is_one_line(run: BatchRun, images: Images, tmp_path: Path) -> None:
    images(5)
    with pytest.raises(InputError, match="99 actors of 1 threads do not fit on"):
        run_batch(replace(run, actors=99))
    assert [each.name for each in Path(run.destination).iterdir()] == ["_rism.lock"]

    def fill(*_: object) -> None:  # a DEST that takes no more
        shutil.rmtree(run.destination)
        Path(run.destination).write_text("")

    with pytest.raises(OutputError, match=r"cannot (write|be used)|DEST"):
        run_batch(run, fill)


def test_a_killed_run_continues(run: BatchRun, images: Images) -> None:
    images(60)
    command = [
        sys.executable, "-m", "rism", "map", run.source, "-o", run.destination, "--bundle",
        str(run.bundle), "-e", "red", "-e", "blue", "--provider", "cpu", "--part", "4",
    ]  # fmt: skip
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    end = time.monotonic() + 120
    while not [*Path(run.destination).glob("part-*")] and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = len([*Path(run.destination).glob("part-*")])
    assert 0 < there < 15
    summary = run_batch(replace(run, resume=True))
    assert 0 < summary.skipped < 60
    assert names(run) == [
        (f"{number:03}.png", text) for number in range(60) for text in sorted(TEXTS)
    ]


def test_no_cluster() -> None:
    result: list[BaseException] = []

    def start() -> None:
        try:
            cluster.start("127.0.0.1:1")
        except ProviderError as error:
            result.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert str(result[0]).startswith("Ray at 127.0.0.1:1 does not start: ")


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("{source} -o dest", 1, "error: a folder of images needs --expression TEXT"),
        ("{source} -o dest -e ''", 2, "error: --expression is empty, expected what to find"),
        ("gone -o dest -e red", 1, "is not there: check the path"),
        ("{source} -o {source} -e red", 1, "has other files (000.png)"),
    ],
)
def test_the_command(
    line: str, code: int, message: str, images: Images, tmp_path: Path, monkeypatch: Any
) -> None:
    import shlex

    folder = images(1)
    monkeypatch.chdir(tmp_path)
    result = invoke("map", *shlex.split(line.format(source=folder)), code=code)
    assert message in result.stderr and not (tmp_path / "dest").exists()


@pytest.mark.parametrize("name", ["ray", "daft"])
def test_an_example(name: str, ray: Any, capsys: Any, monkeypatch: Any) -> None:
    pytest.importorskip(name)
    monkeypatch.setattr(sys, "argv", ["", str(EXAMPLES)])
    runpy.run_path(str(EXAMPLES / f"batch/{name}_pipeline.py"), run_name="__main__")
    assert "street.png the green van [266, 244, 410, 359] \n" in capsys.readouterr().out
