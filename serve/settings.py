"""What an operator may set."""

from dataclasses import dataclass
from pathlib import Path

MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Limits and manners of a service.

    Attributes:
        queue: expressions that may wait or run; more are answered 429.
        queue_delay_ms: how long an image waits for more expressions before it is run.
        max_body: bytes of a request; more are answered 413.
        max_pixels: of an image; more are answered 413.
        max_expressions: of one request, and of one run of the transformer's caller.
        timeout_s: seconds from a request's first byte to its answer; later it is 408 or 504.
        workers: images that are run at once.
        api_key: what clients must send; None for nobody.
        hosts: names that a request may call this server by; empty for any.
        cors_origins: pages of other origins that may read answers.
        label_studio_files: folder of Label Studio's files, which its tasks may name; None for none.
    """

    queue: int = 64
    queue_delay_ms: float = 2.0
    max_body: int = 32 * MEBIBYTE
    max_pixels: int = 64_000_000
    max_expressions: int = 32
    timeout_s: float = 60.0
    workers: int = 1
    api_key: str | None = None
    hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    label_studio_files: Path | None = None
