"""`rism serve`: an HTTP service with a page."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from rism.cli.console import Console, UsageError
from rism.cli.flags import (
    BUNDLE_HELP,
    EngineFlags,
    QuietFlags,
    argument,
    memory_option,
    option,
    template_option,
)
from rism.runtime.distribution import needs_extra
from rism.runtime.errors import ProviderError
from rism.runtime.names import CaptureName, EnginePrecision

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class ServeFlags(EngineFlags, QuietFlags):
    """The flags of `rism serve`."""

    bundle: str | None = argument(None, metavar="BUNDLE", help=BUNDLE_HELP)
    host: str = option("127.0.0.1", help="Address to listen on; 0.0.0.0 for every network.")
    port: int = option(7000, min=1, max=65535, help="Port to listen on.")
    api_key: str | None = option(
        None, metavar="KEY", envvar="RISM_API_KEY", help="What clients must send as a Bearer token."
    )
    allow_host: list[str] | None = option(
        None,
        metavar="NAME",
        help="Name that requests may call this server by; repeatable. Default: on a loopback "
        "address only its own names, elsewhere any.",
    )
    cors_origin: list[str] | None = option(
        None, metavar="ORIGIN", help="Page of another origin that may read answers; repeatable."
    )
    label_studio_files: Path | None = option(
        None,
        metavar="DIR",
        help="Folder of Label Studio's files: images that its tasks name are read below it.",
    )
    workers: int | None = option(
        None,
        min=1,
        max=64,
        help="Images to run at once; they share the threads. Default: as for rism run.",
    )
    memory: str | None = memory_option()
    queue: int = option(64, min=1, max=100_000, help="Expressions that may wait or run.")
    queue_delay: float = option(
        2.0, min=0, max=10_000, help="Milliseconds that an image waits for more expressions."
    )
    max_body: int = option(32, min=1, max=4096, help="MiB of a request.")
    max_pixels: int = option(64_000_000, min=1, max=1_000_000_000, help="Pixels of an image.")
    max_expressions: int = option(32, min=1, max=1024, help="Expressions of a request.")
    timeout: float = option(60.0, min=0.1, max=86_400, help="Seconds of a request.")
    max_batch: int = option(8, min=1, max=256, help="Expressions of one run of the transformer.")
    precision: EnginePrecision | None = option(None, help="Precision to compute in.")
    capture: CaptureName | None = option(None, help="Transformer graph to use.")
    template: str | None = template_option()


def serve(flags: ServeFlags, console: Console) -> None:
    """Serve a bundle over HTTP, with a page to try it."""
    with needs_extra("serve", "serve"):
        from rism.serve import ServeSettings, app
        from rism.serve.server import log_json_lines, run_server
    from rism.cli.flags import same_named
    from rism.runtime.engines.cpu_threads import MOST_WORKERS, cpu_count
    from rism.runtime.segmenter import Segmenter

    workers = flags.workers or min(MOST_WORKERS, flags.threads or cpu_count())
    if flags.memory is not None:
        workers = 1  # two would need the memory of both
    if flags.api_key is not None and not flags.api_key.strip():
        raise UsageError("--api-key is empty, expected a key, or none of the flag")
    if flags.label_studio_files is not None and not flags.label_studio_files.is_dir():
        raise UsageError(f"--label-studio-files: there is no folder '{flags.label_studio_files}'")
    segmenter = same_named(
        Segmenter.from_bundle,
        flags,
        path_or_name=flags.bundle,
        warn=console.detail,
        workers=workers,
    )
    hosts = tuple(each.lower() for each in flags.allow_host or ())
    if flags.host in _LOOPBACK:
        hosts = (*_LOOPBACK, *hosts)
    settings = ServeSettings(
        queue=flags.queue,
        queue_delay_ms=flags.queue_delay,
        max_body=flags.max_body * 2**20,
        max_pixels=flags.max_pixels,
        max_expressions=flags.max_expressions,
        timeout_s=flags.timeout,
        workers=workers,
        api_key=flags.api_key,
        hosts=hosts,
        cors_origins=tuple(flags.cors_origin or ()),
        label_studio_files=flags.label_studio_files,
    )
    log_json_lines(logging.WARNING if flags.quiet else logging.INFO)
    if flags.host not in _LOOPBACK and flags.api_key is None:
        console.note(f"note: everybody who reaches {flags.host} can use this server: --api-key KEY")
    console.note(f"serving {segmenter.manifest.model.name} on http://{flags.host}:{flags.port}/")
    if not run_server(app(segmenter, settings), settings, host=flags.host, port=flags.port):
        raise ProviderError(f"cannot listen on {flags.host}:{flags.port}: choose another --port")
