"""From what a transformer graph returned to answers: on the host, or where its outputs lie."""

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from rism.runtime.capture import expect_outputs, localise_outputs
from rism.runtime.device import Device, DeviceArray
from rism.runtime.engines import Arrays, Engine, LazyEngine
from rism.runtime.geometry import Plan, upsample
from rism.runtime.method import Localisation

__all__ = ["Answer", "DeviceEngine", "Wanted", "answers_on_host", "device_engine"]


@dataclass(frozen=True)
class Wanted:
    """What is to be made of a graph's outputs.

    Attributes:
        capture: which capture mode the graph is.
        batch: B, rows of the outputs.
        count: how many of them are expressions; the others fill up a fixed batch.
        plan: how the picture was brought to the model's grid.
        tau: region threshold.
        prototype: see `method.prototypes`.
    """

    capture: str
    batch: int
    count: int
    plan: Plan
    tau: float
    prototype: str


@dataclass(frozen=True)
class Answer:
    """What is said of one expression; arrays of the host.

    Attributes:
        found: the method's answer on the token grid.
        mask_hw: (H, W) bool.
        empty: nothing is in the mask.
        token_attention: (N_v, N_p) float32, where the graph has it.
        method_ms: what the method took.
        mask_ms: what the mask took, and its way to the host.
    """

    found: Localisation
    mask_hw: npt.NDArray[np.bool_]
    empty: bool
    token_attention: npt.NDArray[np.float32] | None
    method_ms: float
    mask_ms: float


@runtime_checkable
class DeviceEngine(Protocol):
    """An engine that leaves its outputs on a GPU."""

    @property
    def device(self) -> Device:
        """The GPU."""

    def run_on_device(
        self, feeds: Mapping[str, Any], *, borrow: bool = False
    ) -> dict[str, DeviceArray]:
        """Queue a run and return its outputs; see `TensorRtEngine.run_on_device`."""


def device_engine(engine: Engine) -> DeviceEngine | None:
    """Return an engine as one that leaves its outputs on a GPU, or None; loads a lazy one."""
    found = engine.loaded() if isinstance(engine, LazyEngine) else engine
    return found if isinstance(found, DeviceEngine) else None


def answers_on_host(outputs: Arrays, wanted: Wanted) -> list[Answer]:
    """Apply the method and upsample, with NumPy.

    Raises:
        BundleError: an output is not of the shape that the bundle promised.
    """
    expect_outputs(wanted.capture, outputs, batch=wanted.batch, tokens=wanted.plan.tokens)
    outputs = {name: each.astype(np.float32, copy=False) for name, each in outputs.items()}
    answers = []
    for row in range(wanted.count):
        start = perf_counter()
        own = {name: each[row] for name, each in outputs.items()}
        found = localise_outputs(wanted.capture, own, tau=wanted.tau, prototype=wanted.prototype)
        after_method = perf_counter()
        mask_hw = upsample(found.scores.reshape(wanted.plan.grid_hw), wanted.plan) > 0
        empty = not mask_hw.any()
        after_mask = perf_counter()
        answers.append(
            Answer(
                found,
                mask_hw,
                empty,
                own.get("token_attention"),
                method_ms=(after_method - start) * 1e3,
                mask_ms=(after_mask - after_method) * 1e3,
            )
        )
    return answers
