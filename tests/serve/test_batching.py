"""The queue: what runs together, who waits, who is turned away, and how it ends."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from rism.runtime.result.rendering import encode_png
from rism.runtime.segmenter import Segmenter
from tests.cli.conftest import ENV
from tests.paths import ROOT
from tests.serve.conftest import Server, running, until


def _later(server: Server, picture: bytes, *expressions: str) -> "Future[httpx.Response]":
    """Ask in a thread, with a connection of its own."""
    found: Future[httpx.Response] = Future()

    def ask() -> None:
        try:
            form = {"files": {"image": picture}, "data": {"expression": list(expressions)}}
            found.set_result(httpx.post(f"{server.url}/v1/segment", timeout=60, **form))
        except Exception as error:
            found.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    return found


def _depth(server: Server) -> int:
    lines = server.client.get("/metrics").text.splitlines()
    return next(int(float(x.split()[1])) for x in lines if x.startswith("rism_queue_expressions"))


def test_expressions_on_one_image_share_a_run(
    loaded: Segmenter, picture: bytes, colours: np.ndarray
) -> None:
    with running(loaded, queue_delay_ms=10_000, max_expressions=4) as server:
        asked = [_later(server, picture, text) for text in ("green", "red", "blue")]
        until(lambda: _depth(server) == 3)
        asked.append(_later(server, picture, "green"))  # full: it need not wait any longer
        answers = [each.result(60).json()["results"][0] for each in asked]
        assert server.gate.rows == [3]  # what was asked twice is run once
        assert answers[0] == answers[3]
        together = loaded.segment(colours, ["green", "red", "blue"])
        assert [each["box_xyxy"] and tuple(each["box_xyxy"]) for each in answers[:3]] == [
            each.box_xyxy for each in together
        ]
        assert "rism_image_cache_hits_total 3.0" in server.client.get("/metrics").text


def test_images_take_turns(loaded: Segmenter, picture: bytes, colours: np.ndarray) -> None:
    other = encode_png(colours[:, ::-1].copy())
    with running(loaded, queue_delay_ms=0) as server:
        server.gate.gate.clear()
        asked = [_later(server, picture, "first")]
        until(lambda: server.gate.rows == [1])  # it runs; the others wait
        asked.append(_later(server, picture, "second"))
        until(lambda: _depth(server) == 2)
        asked.append(_later(server, other, "a", "b"))
        until(lambda: _depth(server) == 4)
        asked.append(_later(server, picture, "third"))
        until(lambda: _depth(server) == 5)
        server.gate.gate.set()
        assert [each.result(60).status_code for each in asked] == [200] * 4
        assert server.gate.rows == [1, 2, 2]  # second with third, then the other image


def test_one_bad_expression_spoils_no_other_answer(loaded: Segmenter, picture: bytes) -> None:
    with running(loaded, queue_delay_ms=300) as server:
        good = _later(server, picture, "green")
        bad = _later(server, picture, "\x00")
        assert good.result(60).status_code == 200
        assert bad.result(60).status_code == 422


def test_a_full_queue(loaded: Segmenter, picture: bytes) -> None:
    with running(loaded, queue=2, queue_delay_ms=0) as server:
        server.gate.gate.clear()
        asked = _later(server, picture, "a", "b")
        until(lambda: _depth(server) == 2)
        refused = server.segment(picture, "c")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        server.gate.gate.set()
        assert asked.result(60).status_code == 200
        assert server.segment(picture, "c").status_code == 200


def test_a_result_that_comes_too_late(loaded: Segmenter, picture: bytes) -> None:
    with running(loaded, timeout_s=0.5, queue_delay_ms=0) as server:
        server.gate.gate.clear()
        late = [_later(server, picture, "a"), _later(server, picture, "b")]
        assert {each.result(60).status_code for each in late} == {504}
        server.gate.gate.set()
        until(lambda: _depth(server) == 0)
        assert server.segment(picture, "c").status_code == 200
        assert len(server.gate.rows) <= 3


def test_who_has_gone_is_not_worked_for(loaded: Segmenter, picture: bytes) -> None:
    with running(loaded, queue_delay_ms=0) as server:
        server.gate.gate.clear()
        first = _later(server, picture, "a")
        until(lambda: server.gate.rows == [1])
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{server.url}/v1/segment", files={"image": picture}, data={"expression": "b"},
                timeout=0.3,
            )  # fmt: skip
        until(lambda: _depth(server) == 1)
        server.gate.gate.set()
        assert first.result(60).status_code == 200
        assert server.gate.rows == [1]
        assert 'status="499"' in server.client.get("/metrics").text


def _serve(bundle: Path, *flags: str) -> tuple["subprocess.Popen[str]", str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rism", "serve", str(bundle), "--port", str(port), *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=ENV)
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.poll() is None, process.stderr and process.stderr.read()
        try:
            return httpx.get(f"{url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    until(ready, 60)
    return process, url


def test_a_process_from_its_start_to_sigterm(tiny_bundle: Path, picture: bytes) -> None:
    process, url = _serve(tiny_bundle, "--timeout", "5", "--queue-delay", "700")
    head = b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Le"
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as slow:
        slow.sendall(head)  # and no more
        with ThreadPoolExecutor(1) as pool:
            form = {"files": {"image": picture}, "data": {"expression": "green"}}
            asked = pool.submit(httpx.post, f"{url}/v1/segment", **form)
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            assert asked.result(30).status_code == 200  # what was asked is answered
        _, logged = process.communicate(timeout=60)
    assert process.returncode in (0, 143), logged
    lines = [json.loads(line) for line in logged.splitlines() if line.startswith("{")]
    [segmented] = [line for line in lines if line.get("path") == "/v1/segment"]
    assert (segmented["method"], segmented["status"]) == ("POST", 200)
    assert segmented["request_id"] and "Traceback" not in logged


def test_a_head_that_never_ends(tiny_bundle: Path) -> None:
    process, url = _serve(tiny_bundle, "--timeout", "1")
    try:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as slow:
            slow.sendall(b"GET / HTTP/1.1\r\nHost: ")
            slow.settimeout(30)
            assert slow.recv(10) == b""
    finally:
        process.kill()
        process.wait()


def test_a_port_in_use(tiny_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        run = subprocess.run(
            [sys.executable, "-m", "rism", "serve", str(tiny_bundle), "--port", port],
            capture_output=True, text=True, cwd=ROOT, env=ENV, timeout=120, check=False,
        )  # fmt: skip
    assert run.returncode == 1
    assert "cannot listen on" in run.stderr and "Traceback" not in run.stderr
