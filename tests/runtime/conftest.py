from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rism.runtime import Segmenter
from rism.runtime.engines import rtx_plugin
from tests.conftest import Reseal
from tests.runtime.engines.fake_tensorrt import FakeTensorRt, HostDevice, stand_in, variant
from tests.runtime.engines.profiles import ALL


@pytest.fixture(autouse=True)
def no_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """What "auto" tries is the same wherever the tests run."""
    monkeypatch.setattr(rtx_plugin, "find_spec", lambda _: None)


@pytest.fixture(scope="session")
def segmenter(tiny_master: Path) -> Segmenter:
    return Segmenter.from_bundle(tiny_master, provider="cpu", threads=1)


@pytest.fixture
def vision_bundle(tmp_path: Path, reseal: Reseal) -> Path:
    """A bundle whose text encoder has vision."""
    from tests.runtime.vision_language import make_bundle

    return reseal(make_bundle(tmp_path / "vision"))


@pytest.fixture
def device() -> HostDevice:
    return HostDevice()


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, device: HostDevice) -> FakeTensorRt:
    """The recorded edge, where providers look for the library."""
    fake = stand_in(monkeypatch, device)
    fake.device = device
    return fake


@pytest.fixture
def built(tiny_bundle: Path, reseal: Reseal, trt: FakeTensorRt) -> Callable[..., Path]:
    """What puts a variant into the tiny bundle; TensorRT is the recorded edge."""

    def build(graphs: dict[str, Any] | None = None, **changes: Any) -> Path:
        entry = variant(tiny_bundle, ALL if graphs is None else graphs, **changes)
        return reseal(tiny_bundle, lambda data: data.update(engines=[entry]))

    return build
