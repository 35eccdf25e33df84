"""The folder benchmark measures two ways of writing the same files."""

from benchmarks import folder


def test_both_ways_write_the_same() -> None:
    result = folder.run(pictures=3, runs=1)
    assert result["files"] == 6
    # Another number of threads rounds differently: a pixel on the edge of one mask may be.
    assert result["files_that_differ"] <= 2
    assert result["times_faster"] > 0
    for way in ("single_calls", "overlapped"):
        assert result[way]["runs"] == 1
        assert result[way]["median_s"] > 0
        assert result[way]["peak_bytes"] > 20_000_000
    assert "overlapped" in folder.report(result)
