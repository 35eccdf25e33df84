import numpy as np
import pytest

from rism.calibration.e4m3 import round_trip
from rism.calibration.histogram import Histogram


def heavy_tailed(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.standard_normal(count) ** 3).astype(np.float32)


def test_what_streams_by_is_counted_as_if_it_were_one_array() -> None:
    values = heavy_tailed(200_000)
    parts, whole = Histogram(), Histogram()
    for part in np.array_split(values, 7):
        parts.add(part.reshape(-1, 1))
    whole.add(values)
    assert parts.largest == whole.largest == np.abs(values).max()
    assert parts.count == whole.count == values.size
    for percent in (1.0, 50.0, 99.0, 99.99, 100.0):
        exact = float(np.percentile(np.abs(values), percent, method="inverted_cdf"))
        assert parts.percentile(percent) == whole.percentile(percent)
        assert exact <= parts.percentile(percent) <= exact * (1 + 2**-7)


@pytest.mark.parametrize("share", [1.0, 0.3, 0.01])
def test_errors_are_those_of_the_values(share: float) -> None:
    values = heavy_tailed(300_000)
    histogram = Histogram()
    histogram.add(values)
    scale = float(np.float32(histogram.largest * share / 448))
    error = histogram.error(scale)
    exact = np.sqrt(np.square(round_trip(values, scale) - values).sum() / np.square(values).sum())
    assert error.relative == pytest.approx(exact, rel=0.02)
    assert error.saturated == pytest.approx(
        np.mean(np.abs(values) > 448 * scale), rel=2e-3, abs=3e-5
    )


def test_edge_cases() -> None:
    histogram = Histogram()
    histogram.add(heavy_tailed(1000))
    assert histogram.error(float(np.float32(histogram.largest / 448))).saturated == 0
    histogram = Histogram()
    histogram.add(np.float32([1.0, np.inf, -np.nan, -2.0]))
    assert (histogram.unsound, histogram.largest, histogram.percentile(100)) == (2, 2.0, 2.0)
    histogram = Histogram()
    histogram.add(np.zeros(10, np.float16))
    assert histogram.percentile(99) == histogram.percentile(100) == 0.0
    assert histogram.error(1e-30).relative == 0.0
