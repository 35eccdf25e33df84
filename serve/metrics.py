"""What is counted, in Prometheus' format; a registry for each app."""

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from rism.runtime.result.segmentation import Segmentation

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Requests, the queue, runs and stages."""

    def __init__(self, depth: Callable[[], int], device_bytes: Callable[[], int | None]) -> None:
        """Take what tells the expressions in the queue, and the memory in use of a GPU."""
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "rism_requests", "Requests by path and status.", ("path", "status"), registry=registry
        )
        self.seconds = Histogram(
            "rism_request_seconds", "Seconds of a request.", ("path",),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.rows = Histogram(
            "rism_run_rows", "Expressions that a run of the model held.",
            buckets=_ROWS, registry=registry,
        )  # fmt: skip
        self.stages = Histogram(
            "rism_stage_seconds", "Seconds of a stage of a run.", ("stage",),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.cached = Counter(
            "rism_image_cache_hits", "Images that were there already.", registry=registry
        )
        Gauge(
            "rism_queue_expressions", "Expressions that wait or run.", registry=registry
        ).set_function(depth)
        if device_bytes() is not None:
            Gauge(
                "rism_device_memory_bytes", "Memory of the GPU in use.", registry=registry
            ).set_function(lambda: device_bytes() or 0)

    def ran(self, results: Sequence[Segmentation]) -> None:
        """Count one run: how many expressions it held, and its stages."""
        self.rows.observe(len(results))
        for stage in _stages(results):
            spent = sum(result.timings_ms.get(stage, 0.0) for result in results)
            self.stages.labels(stage).observe(spent / 1e3)

    def text(self) -> bytes:
        """Return all of it, as Prometheus reads it."""
        return generate_latest(self._registry)


def _stages(results: Iterable[Segmentation]) -> list[str]:
    return list(dict.fromkeys(stage for result in results for stage in result.timings_ms))
