"""`rism serve` under many clients, against a loop of `segment` calls over the same requests.

The server is a process, and so are the clients, which share its cores. Requests are files of
drawn images, no two with the same pixels.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psutil

from benchmarks.harness.errors import DiffersError
from benchmarks.harness.rows import Row, Task, image_size, of_value
from benchmarks.scenarios.folder import draw
from rism.runtime import Segmenter

PLAIN, OURS = "plain loop", "rism serve"
EXPRESSIONS = ("the green van", "the red car", "the blue house", "the yellow tree")
_BOUNDARY = "rism-benchmark"


def measure(task: Task) -> Iterator[Row]:
    """Measure seconds for each expression: one on each image, then four, as four requests."""
    with tempfile.TemporaryDirectory() as place:
        draw(Path(place) / "images", task["images"], image_size(task["size"]))
        files = [file.read_bytes() for file in sorted((Path(place) / "images").iterdir())]
        for group, expressions in (
            ("1 expression", EXPRESSIONS[:1]),
            ("4 expressions", EXPRESSIONS),
        ):
            asked = [(file, text) for file in files for text in expressions]
            yield of_value(PLAIN, _loop(asked, task["seconds"]), unit="s", group=group)
            with server("--queue", "100000", "--queue-delay", "5", "-q") as (port, process):
                yield _load(port, process, asked, task, group)


def _loop(asked: list[tuple[bytes, str]], seconds: float) -> float:
    segmenter = Segmenter.from_bundle(provider="cpu")
    segmenter.segment(*asked[0])
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        segmenter.segment(*asked[done % len(asked)])
        done += 1
    return (time.perf_counter() - start) / done


def _load(
    port: int, process: psutil.Process, asked: list[tuple[bytes, str]], task: Task, group: str
) -> Row:
    """Let clients ask for a time, one request after the other each."""
    numbers, lock = count(), threading.Lock()
    statuses: Counter[int] = Counter()
    took: list[float] = []
    bodies = [_form(file, text) for file, text in asked]
    end = [time.perf_counter() + task["warm_seconds"]]

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
        while time.perf_counter() < end[0]:
            with lock:
                number = next(numbers)
            start = time.perf_counter()
            connection.request("POST", "/v1/segment", bodies[number % len(bodies)], headers)
            answer = connection.getresponse()
            answer.read()
            with lock:
                statuses[answer.status] += 1
                took.append(time.perf_counter() - start)
        connection.close()

    def run() -> float:
        start = time.perf_counter()
        threads = [threading.Thread(target=client) for _ in range(task["clients"])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - start

    run()
    before = process.memory_info().rss
    statuses.clear()
    took.clear()
    end[0] = time.perf_counter() + task["seconds"]
    seconds = run()
    ordered = sorted(took)
    return of_value(
        OURS, seconds / len(took), unit="s", group=group,
        p50_s=ordered[len(ordered) // 2], p99_s=ordered[len(ordered) * 99 // 100],
        statuses={str(key): value for key, value in statuses.items()},
        memory_growth=process.memory_info().rss / before - 1,
    )  # fmt: skip


def _form(file: bytes, text: str) -> bytes:
    def part(name: str, more: str, data: bytes) -> bytes:
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
        return head.encode() + data + b"\r\n"

    image = part("image", '; filename="a.png"', file)
    return image + part("expression", "", text.encode()) + f"--{_BOUNDARY}--\r\n".encode()


@contextmanager
def server(*flags: str, **environment: str) -> Iterator[tuple[int, psutil.Process]]:
    """Start `rism serve` on a free port and wait until it is ready; end it at the end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "rism", "serve", "--port", str(port), *flags]
    with subprocess.Popen(command, env={**os.environ, **environment}) as process:
        try:
            while not _ready(port):
                if process.poll() is not None:
                    raise DiffersError(f"the server ended with {process.returncode}")
                time.sleep(0.02)
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()


def _ready(port: int) -> bool:
    try:
        return _get(port, "/readyz") == 200
    except OSError:
        return False


def _get(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status


def measure_hostile(task: Task) -> Iterator[Row]:
    """Send what breaks servers, and check that this one answers 4xx or closes, and stays as it was.

    Raises:
        DiffersError: another answer, a server that is gone, files that are left, or memory.
    """
    place = tempfile.TemporaryDirectory()
    with place, server("-q", "--timeout", "5", TMPDIR=place.name) as (port, process):
        drawn = random.Random(0)
        for kind in _HOSTILE * task["warm_rounds"]:  # every cache and pool has its size after this
            _send(port, kind(drawn))
        before, statuses = process.memory_info().rss, Counter[str]()
        start = time.perf_counter()
        for _ in range(task["requests"]):
            statuses[_send(port, drawn.choice(_HOSTILE)(drawn))] += 1
        seconds = time.perf_counter() - start
        bad = {each: n for each, n in statuses.items() if each != "closed" and each[0] != "4"}
        left = [file.name for file in Path(place.name).iterdir()]
        growth = process.memory_info().rss / before - 1
        files = process.num_fds()
        if bad or left or not _ready(port) or growth > task["growth"]:
            raise DiffersError(f"answers {bad}, memory grew by {growth:.0%}, files {left}")
    yield of_value(
        OURS, seconds / task["requests"], unit="s",
        statuses=dict(statuses), memory_growth=growth, open_files=files, files_left=left,
    )  # fmt: skip


def _send(port: int, data: bytes) -> str:
    """Send bytes as they are, and return the status of what comes.

    Now and then the sending half is closed at once; otherwise after a tenth of a second of silence.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        try:
            connection.sendall(data)
            connection.settimeout(0.1 if zlib.crc32(data) % 4 else 0.0)
            try:
                answer = connection.recv(64)
            except (TimeoutError, BlockingIOError):  # it waits for more
                connection.settimeout(30)
                connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(64)
            else:
                connection.settimeout(30)
                connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        except OSError:
            return "closed"
    return answer.split(b" ")[1].decode() if answer.startswith(b"HTTP/1.1 ") else "closed"


def _post(body: bytes, kind: str, *, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = f"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {size}\r\nConnection: close\r\n\r\n".encode() + body


def _png(width: int, height: int, rows: int) -> bytes:
    """A PNG that says how large it is, and has `rows` rows of zeros."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes((width + 1) * rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _json(drawn: random.Random) -> bytes:
    fields: dict[str, object] = {
        "image": drawn.choice(_WORDS),
        "expression": drawn.choice([1, None, [], {}, "a"]),
    }
    return _post(json.dumps(fields).encode(), "application/json")


def _head(path: str, *more: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *more, "", ""]).encode()


_MULTIPART = f"multipart/form-data; boundary={_BOUNDARY}"
_WORDS = ("a", "", "\0", "x" * 9999, "{}", "../../etc/passwd", "\udcff", "e\u0301" * 50)
_HOSTILE = (
    lambda r: r.randbytes(r.randrange(2000)),
    lambda r: _post(r.randbytes(r.randrange(5000)), "application/json"),
    lambda r: _post(r.randbytes(r.randrange(5000)), _MULTIPART),
    lambda r: _post(_form(r.randbytes(3000), "a"), _MULTIPART),
    lambda r: _post(_form(_png(100, 100, 100)[: r.randrange(60)], "a"), _MULTIPART),
    lambda r: _post(_form(_png(10, 10, 10), "a")[: r.randrange(200)], _MULTIPART),
    lambda _: _post(_form(_png(10, 10, 10), "a"), _MULTIPART, length=10**6),
    lambda _: _post(b"", _MULTIPART, length=10**15),
    lambda _: _post(_form(_png(60000, 60000, 1), "a"), _MULTIPART),
    lambda _: _post(_form(_png(4000, 4000, 4)[:-30], "a"), _MULTIPART),
    _json,
    lambda _: _post(b"[" * 200_000, "application/json"),
    lambda _: _post(b'{"image":' + b"9" * 10_000 + b"}", "application/json"),
    lambda _: _head("/", *["X: y"] * 8_000),
    lambda _: _head("/", "X: " + "y" * 200_000),
    lambda r: _head(f"/static/{'../' * r.randrange(9)}etc/passwd"),
    lambda _: _head("/static/%2e%2e/%2e%2e/pyproject.toml"),
    lambda _: _head("/v1/segment", "Transfer-Encoding: chunked") + b"ZZ\r\n",
    lambda r: _head("/")[: r.randrange(1, 30)],
)


def measure_restart(task: Task) -> Iterator[Row]:
    """Kill the server under load, and measure how long the next one takes until it is ready."""
    for _ in range(task.runs):
        with server("-q") as (port, process):
            form = _post(_form(_png(300, 300, 300), "a"), _MULTIPART)
            loads = [threading.Thread(target=_send, args=(port, form)) for _ in range(8)]
            for each in loads:
                each.start()
            os.kill(process.pid, signal.SIGKILL)
            for each in loads:
                each.join()
    start = time.perf_counter()
    with server("-q"):
        yield of_value(OURS, time.perf_counter() - start, unit="s")
