"""Post-processing on a GPU, on a device whose kernels are emulated."""

import pytest

from benchmarks.scenarios.postprocess_gpu import OutputSizes, compare_ways
from tests.runtime.engines.fake_tensorrt import HostDevice

SMALL = OutputSizes("small", (8, 8), 20, 3, (40, 30))


def test_both_ways_agree_and_every_launch_has_a_floor() -> None:
    device = HostDevice()
    found = compare_ways(SMALL, device=device, runs=2, flush_bytes=4096)
    assert set(found["pixels_that_differ"].values()) == {0}
    launched = device.compiled[-1].launched[-6:]
    assert [each["kernel"] for each in found["launches"]] == launched
    floors = {each["kernel"]: each["floor_s"] for each in found["launches"]}
    read = floors["sums_by_region"] * found["copy_bytes_per_s"]
    assert read == pytest.approx(4 * 64 * 20)
    assert (len(found["kernels"].seconds), len(found["host"].seconds)) == (2, 1)
