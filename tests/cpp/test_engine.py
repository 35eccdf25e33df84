"""The TensorRT engine, compiled around a library that stands for TensorRT in the host's memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import seal
from tests.cpp.build import run
from tests.runtime.engines.fake_tensorrt import variant
from tests.runtime.engines.profiles import VAE

MOST, A_PIXEL = 8_000_000, 100
Segment = Callable[..., Any]


@pytest.fixture
def engine(built: Path, tiny_bundle: Path) -> Segment:
    """Run a plan of the fake on images of some sizes."""

    def call(*sizes: int, plan: str = f"{MOST} {A_PIXEL} 9", **more: Any) -> Any:
        changes = {"target": "tensorrt", "version": "10.14.1.48", **more}
        entry = variant(tiny_bundle, {"vae_encoder": VAE}, **changes)
        (tiny_bundle / entry["graphs"]["vae_encoder"]["file"]).write_text(plan)
        seal(tiny_bundle, lambda data: data.update(engines=[entry]))
        return run([built / "engine_test", tiny_bundle, "vae_encoder", *map(str, sizes)])

    return call


def test_scratch_memory_is_that_of_the_shape(engine: Segment) -> None:
    done = engine(16, 16, 64, 32, 8, 8)
    assert done.returncode == 0, done.stderr
    needed = [A_PIXEL * pixels for pixels in (16 * 16, 64 * 32, 8 * 8)]
    assert list(map(float, done.stdout.split())) == [*needed, max(needed)]


def test_a_plan_that_needs_none(engine: Segment) -> None:
    done = engine(8, 8, plan="0 0 9")
    assert (done.returncode, done.stdout.split()[0]) == (0, "0")


def test_no_size_is_an_error_of_the_library(engine: Segment) -> None:
    done = engine(8, 8, 8, 8, plan=f"{MOST} {A_PIXEL} 1")
    assert done.returncode == 1
    assert done.stderr == (
        "'engines/rtx-fp16/vae_encoder.plan' does not say how much memory these shapes take: no "
        "shapes\n"
    )


def test_streamed_weights_are_all_on_the_gpu(engine: Segment) -> None:
    assert engine(8, 8, streamed=True).returncode == 0
    done = engine(8, 8, plan=f"{MOST} {A_PIXEL} 7", streamed=True)
    assert (done.returncode, done.stderr) == (
        1,
        "'engines/rtx-fp16/vae_encoder.plan' does not keep its weights on the GPU (no room for "
        "1000 bytes): build it without --stream-weights\n",
    )
    assert engine(8, 8, plan=f"{MOST} {A_PIXEL} 7").returncode == 0, "nothing is asked of others"
