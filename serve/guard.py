"""Around every request: its id, its line in the log, its count, the key, the server's name."""

from __future__ import annotations

import base64
import hmac
import json
import logging
import re
import time
import uuid

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rism.serve.errors import error_response
from rism.serve.metrics import Metrics
from rism.serve.settings import ServeSettings

# Whoever asks: is it alive, what is there, and the page, which asks for the key.
_OPEN = (
    *("/", "/docs", "/openapi.json", "/v1/examples"),
    *("/healthz", "/readyz", "/health", "/v2/health/live", "/v2/health/ready"),
)
_OPEN_BELOW = ("/static/", "/v1/examples/")
_REQUEST_ID = re.compile(r"[\w.-]{1,64}")
_HEADS = 200
_HEAD_BYTES = 32 * 1024  # uvicorn's own limit misses a head that comes at once
_CLIENT_GONE = 499  # as nginx counts it; nobody receives it
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),  # no page of one version with a script of another
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; "
        b"frame-ancestors 'none'",
    ),
)
log = logging.getLogger("rism.serve")


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, start, status = Request(scope), time.perf_counter(), 0
        given = request.headers.get("x-request-id", "")
        identity = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [*_HEADERS, (b"x-request-id", identity.encode())]
                message["headers"] = [*message.get("headers", ()), *own]
            try:
                await send(message)
            except Exception as error:  # the server's own, where the connection is broken
                raise ClientDisconnect from error

        try:
            await (self._refused(request) or self._app)(scope, receive, marked)
        except ClientDisconnect:
            status = _CLIENT_GONE
        except Exception:
            log.exception("request %s failed", identity)
            if status == 0:
                await error_response(500)(scope, receive, marked)
        finally:
            took = time.perf_counter() - start
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(took)
            line = {
                "request_id": identity,
                "client": (scope.get("client") or ("",))[0],
                "method": scope["method"],
                "path": scope["path"][:200],
                "status": status,
                "ms": round(took * 1e3, 1),
            }
            log.info("%s", json.dumps(line))

    def _refused(self, request: Request) -> Response | None:
        host = host_name(request.headers.get("host", ""))
        if self._settings.hosts and host not in self._settings.hosts:
            return error_response(
                400,
                f"this server is not called '{host[:80]}'",
                hint="start it with --allow-host NAME",
            )
        heads = request.scope["headers"]
        if (
            len(heads) > _HEADS
            or sum(len(name) + len(value) for name, value in heads) > _HEAD_BYTES
        ):
            return error_response(431, "the headers are too large")
        path = request.scope["path"]
        if self._settings.api_key is None or path in _OPEN or path.startswith(_OPEN_BELOW):
            return None
        key = _given_key(request).strip()
        if hmac.compare_digest(key.encode(), self._settings.api_key.encode()):
            return None
        return error_response(401, headers={"WWW-Authenticate": "Bearer"})


def _given_key(request: Request) -> str:
    """Return the key of `Authorization: Bearer`, `Token` or `Basic` (any user), or of `Token:`."""
    kind, _, key = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "basic":
        try:
            return base64.b64decode(key, validate=True).decode().partition(":")[2]
        except ValueError:
            return ""
    return key if kind.lower() in ("bearer", "token") else request.headers.get("token", "")


def host_name(header: str) -> str:
    """Return the name in a Host header, without the port and in lower case; "[::1]" as "::1"."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()
