import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn

from rism.runtime.engines.base import Arrays, Engine
from rism.runtime.result.rendering import encode_png
from rism.runtime.segmenter import Segmenter
from rism.serve import ServeSettings, app
from rism.serve.server import server_config

Serve = Callable[..., Any]


class GatedEngine:
    """A real engine behind a gate: it counts rows of its runs, and waits while it is shut."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.provider = engine, engine.provider
        self.gate = threading.Event()
        self.gate.set()
        self.rows: list[int] = []

    def run(self, feeds: Mapping[str, Any]) -> Arrays:
        self.rows.append(len(feeds["prompt_embeds"]))
        assert self.gate.wait(60)
        return self._engine.run(feeds)


class Server:
    """A server in a thread, with a client."""

    def __init__(self, url: str, gate: GatedEngine) -> None:
        self.url, self.gate = url, gate
        self.client = httpx.Client(base_url=url, timeout=60)

    def segment(self, picture: bytes, *expressions: str, **fields: Any) -> httpx.Response:
        headers = fields.pop("headers", None)
        return self.client.post(
            "/v1/segment",
            files={"image": ("a.png", picture)},
            data={"expression": list(expressions), **fields},
            headers=headers,
        )


@pytest.fixture(scope="module")
def loaded(tiny_master: Path) -> Segmenter:
    return Segmenter.from_bundle(tiny_master, provider="cpu", threads=1)


@contextmanager
def running(segmenter: Segmenter, **settings: Any) -> Iterator[Server]:
    gates: list[GatedEngine] = []

    def gated(name: str, engine: Engine) -> Engine:
        if name != "transformer":
            return engine
        gates.append(GatedEngine(engine))
        return gates[-1]

    limits = ServeSettings(**{"timeout_s": 20.0, **settings})
    made = app(segmenter.with_engines(gated), limits)
    server = uvicorn.Server(server_config(made, limits, host="127.0.0.1", port=0))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    found = Server(f"http://127.0.0.1:{port}", gates[0])
    until(lambda: found.client.get("/readyz").status_code == 200)
    gates[0].rows.clear()
    try:
        yield found
    finally:
        gates[0].gate.set()
        found.client.close()
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for something that happens soon."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def server(loaded: Segmenter) -> Iterator[Server]:
    with running(loaded, queue_delay_ms=0) as found:
        yield found


@pytest.fixture
def picture(colours: np.ndarray) -> bytes:
    return encode_png(colours)
