"""The method over CuPy: every function asks the array's own namespace, and none goes to the host.

Without a GPU CuPy is played by NumPy, more strictly than CuPy itself: NumPy's functions refuse
its arrays, and its own refuse NumPy's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rism.runtime.image.geometry import Plan
from rism.runtime.method import equations
from rism.runtime.method.postprocess import localise_outputs
from rism.runtime.method.upsampling import upsample

GRID_HW, L, D = (5, 7), 3, 11
N = GRID_HW[0] * GRID_HW[1]
PLAN = Plan((40, 33), (60, 44), (2, 2, 58, 42), GRID_HW)


class DeviceArray(np.ndarray):
    """Mixes with numbers and with its like."""

    def __array_ufunc__(
        self, ufunc: np.ufunc, how: str, *inputs: Any, out: Any = (), **options: Any
    ) -> Any:
        if out:
            options["out"] = tuple(_host(each) for each in out)
        result = getattr(ufunc, how)(*(_host(each) for each in inputs), **options)
        return out[0] if out else _device(result)

    def __array_function__(self, function: Any, *_: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} was given an array of the device")

    def __getitem__(self, where: Any) -> Any:
        return _device(np.ndarray.__getitem__(self.view(np.ndarray), _host(where)))


DeviceArray.__module__ = "cupy"


def _host(value: Any) -> Any:
    """What NumPy may work on; an array of the host is where none may be."""
    if isinstance(value, DeviceArray):
        return value.view(np.ndarray)
    if isinstance(value, (tuple, list)):
        return type(value)(_host(each) for each in value)
    if isinstance(value, np.ndarray):
        raise TypeError("an array of the host meets one of the device")
    return value


def _device(value: Any) -> Any:
    return np.asarray(value).view(DeviceArray)


class PlayedCupy(ModuleType):
    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        if isinstance(found, type):
            return found
        if name in ("asarray", "array"):
            return lambda *given: _device(found(*given))
        return lambda *given, **options: _device(
            found(*_host(given), **{key: _host(each) for key, each in options.items()})
        )


@pytest.fixture(params=["played", pytest.param("real", marks=pytest.mark.gpu)])
def to_device(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[np.ndarray], Any]:
    if request.param == "real":
        return pytest.importorskip("cupy").asarray  # type: ignore[no-any-return]
    monkeypatch.setitem(sys.modules, "cupy", PlayedCupy("cupy"))
    return _device


def _outputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    blob = np.exp(-(np.hypot(*(np.indices(GRID_HW).reshape(2, -1) - 2)) ** 2) / 4)
    matrices = rng.uniform(0, 1, (L, N, N)) + 9 * blob[:, None] * blob
    outputs = {
        "attention_vectors": blob + rng.uniform(0, 0.2, (L, N)),
        "propagated_vectors": blob + rng.uniform(0, 0.2, (L, N)),
        "transition_matrices": matrices / matrices.sum(-1, keepdims=True),
        "features": rng.standard_normal((N, D)) + 3 * blob[:, None],
        "scores": blob - 0.5,
        "coarse_attention": blob,
        "refined_attention": blob,
        "separability": np.array(0.7),
    }
    return {name: each.astype(np.float32) for name, each in outputs.items()}


@pytest.mark.parametrize("prototype", ["equation", "cosine"])
@pytest.mark.parametrize("capture", ["vectors", "matrices", "scores"])
def test_results_are_those_of_numpy(
    to_device: Callable[[np.ndarray], Any], capture: str, prototype: str
) -> None:
    outputs = _outputs()
    true = localise_outputs(capture, outputs, tau=0.6, prototype=prototype)
    there = {name: to_device(each) for name, each in outputs.items()}
    found = localise_outputs(capture, there, tau=0.6, prototype=prototype)
    for name in ("scores", "coarse", "refined"):
        ours = getattr(found, name)
        assert type(ours).__module__.startswith("cupy") and ours.dtype == np.float32
        np.testing.assert_allclose(_fetched(ours), getattr(true, name), rtol=0, atol=2e-6)
    assert found.reason is None and true.reason is None
    assert found.separability == pytest.approx(true.separability, rel=1e-4)
    mask_hw = upsample(found.scores.reshape(GRID_HW), PLAN) > 0
    true_hw = upsample(true.scores.reshape(GRID_HW), PLAN)
    near = np.abs(true_hw) < 1e-5
    np.testing.assert_array_equal(_fetched(mask_hw) | near, (true_hw > 0) | near)


@pytest.mark.parametrize("capture", ["vectors", "scores"])
@pytest.mark.parametrize("value", [np.nan, 0.25])
def test_reasons_are_those_of_numpy(
    to_device: Callable[[np.ndarray], Any], capture: str, value: float
) -> None:
    outputs = _outputs()
    for name in ("propagated_vectors", "refined_attention"):
        outputs[name][...] = value
    true = localise_outputs(capture, outputs, tau=0.6, prototype="equation")
    there = {name: to_device(each) for name, each in outputs.items()}
    found = localise_outputs(capture, there, tau=0.6, prototype="equation")
    assert found.reason == true.reason is not None
    assert not _fetched(found.scores).any()


def test_parts_that_have_doors_of_their_own(to_device: Callable[[np.ndarray], Any]) -> None:
    features = _outputs()["features"]
    region = np.arange(N) % 3 == 0
    there, marked = to_device(features), to_device(region)
    true = equations.prototypes(features, region)
    found = equations.prototypes(there, marked)
    np.testing.assert_allclose(_fetched(found), true, rtol=0, atol=1e-6)
    scores = equations.classify(there, found)
    np.testing.assert_allclose(_fetched(scores), equations.classify(features, true), atol=2e-6)
    fisher = equations.separability(features, region)
    assert equations.separability(there, marked) == pytest.approx(fisher, rel=1e-4)
    assert equations.separability(there, to_device(np.ones(N, bool))) == 0.0


def _fetched(array: Any) -> np.ndarray:
    return np.asarray(array.get() if hasattr(array, "get") else array.view(np.ndarray))
