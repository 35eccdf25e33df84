"""Ranges for FP8 engines, measured on pictures: no part of the runtime.

Names are imported when first asked for, so that importing this package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rism.calibration.calibrate import CalibrationOptions, calibrate
    from rism.calibration.qdq import quantise
    from rism.calibration.report import CalibrationReport
    from rism.calibration.scales import Scales, load_scales

__all__ = [
    "CalibrationOptions",
    "CalibrationReport",
    "Scales",
    "calibrate",
    "load_scales",
    "quantise",
]

_HOMES = {
    "CalibrationOptions": "measure",
    "CalibrationReport": "report",
    "Scales": "scales",
    "calibrate": "measure",
    "load_scales": "scales",
    "quantise": "qdq",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
