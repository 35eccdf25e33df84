"""The benchmark of post-processing on a GPU, on a device whose kernels are emulated."""

import pytest

from benchmarks.postprocess_gpu import Case, measure, report
from tests.runtime.fake_tensorrt import HostDevice

SMALL = Case("small", (8, 8), 20, 3, (40, 30))


def test_three_ways_agree_and_every_launch_has_a_floor() -> None:
    for capture, launches in (("vectors", 6), ("matrices", 7)):
        device = HostDevice()
        result = measure(SMALL, capture, 2, device=device, runs=2, flush_bytes=4096)
        assert set(result["pixels_that_differ"].values()) == {0}
        assert [each["kernel"] for each in result["launches"]] == device.compiled[-1].launched[
            -launches:
        ]
        floors = {each["kernel"]: each["floor_s"] for each in result["launches"]}
        read = floors["sums_by_region"] * result["copy_bytes_per_s"]
        assert read == pytest.approx(2 * 4 * 64 * 20)
        assert (result["kernels"]["runs"], result["host"]["runs"]) == (2, 1)
        table = report("small", result).splitlines()
        assert len(table) == 1 + 3 + launches and "0 pixels differ" in table[1]
