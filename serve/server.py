"""The HTTP server: uvicorn, with a limit on how long a request's head may take."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from rism.serve.settings import ServeSettings

_HEAD_BYTES = 32 * 1024
_KEEP_ALIVE_S = 15
_BACKLOG = 512
_CONNECTIONS = 1024


class _ImpatientProtocol(H11Protocol):
    """Ends a connection whose request's head does not come in time; uvicorn waits for ever."""

    head_timeout_s = 60.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.head_timeout_s, self._give_up)

    def _give_up(self) -> None:
        if self.scope is None:  # until the first head is read
            self.transport.close()  # type: ignore[unreachable]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)


class _JsonLines(logging.Formatter):
    """A line of JSON a record, with what the record itself says in JSON merged in."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"time": self.formatTime(record), "level": record.levelname.lower()}
        text = record.getMessage()
        try:
            said = json.loads(text)
        except ValueError:
            said = text
        line |= said if isinstance(said, dict) else {"message": text}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _worth_a_line(record: logging.LogRecord) -> bool:
    """Leave out what uvicorn says of each broken connection; the request has its own line."""
    return record.getMessage() != "ASGI callable returned without completing response."


def log_json_lines(level: int) -> None:
    """Write what happens to stderr, a line of JSON each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    handler.addFilter(_worth_a_line)
    for name in ("rism.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def server_config(
    app: Starlette, settings: ServeSettings, *, host: str, port: int
) -> uvicorn.Config:
    """Return how uvicorn is to serve it."""
    protocol = type("Protocol", (_ImpatientProtocol,), {"head_timeout_s": settings.timeout_s})
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(settings.timeout_s) + 1,
        h11_max_incomplete_event_size=_HEAD_BYTES,
        limit_concurrency=_CONNECTIONS,
        backlog=_BACKLOG,
    )


def run_server(app: Starlette, settings: ServeSettings, *, host: str, port: int) -> bool:
    """Serve until a signal; then answer what was asked, and return whether it ever started."""
    server = uvicorn.Server(server_config(app, settings, host=host, port=port))
    with contextlib.suppress(SystemExit):  # uvicorn's, where it cannot listen
        server.run()
    return server.started
