"""A few of the requests of `python -m benchmarks serve-hostile`, which has ten thousand."""

import socket

from benchmarks.harness.rows import Task
from benchmarks.scenarios.serve import measure_hostile
from tests.serve.conftest import Server


def test_hostile_requests_are_refused() -> None:
    [row] = measure_hostile(Task("serve_hostile", 1, 0, {"requests": 150, "growth": 0.5}))
    assert set(row.notes["statuses"]) >= {"400", "404", "413", "422", "431", "closed"}


def test_a_client_that_sends_no_more_is_answered(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.client.base_url.port or 0)) as half:
        half.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        half.shutdown(socket.SHUT_WR)
        assert b"200" in half.recv(100)
