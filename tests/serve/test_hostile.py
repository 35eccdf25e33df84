"""A few of the requests of `python -m benchmarks serve-hostile`, which has ten thousand."""

from benchmarks.harness.rows import Task
from benchmarks.scenarios.serve import measure_hostile


def test_hostile_requests_are_refused() -> None:
    [row] = measure_hostile(
        Task("serve_hostile", 1, 0, {"requests": 60, "warm_rounds": 1, "growth": 0.5})
    )
    assert set(row.notes["statuses"]) >= {"400", "413", "closed"}
