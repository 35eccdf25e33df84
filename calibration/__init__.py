"""FP8 scales of a transformer, measured on images. Names are imported on first use."""

from typing import TYPE_CHECKING

from rism.lazy_names import lazy_names

if TYPE_CHECKING:
    from rism.calibration.qdq import quantise
    from rism.calibration.ranges import CalibrationOptions, calibrate
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

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "qdq": ["quantise"],
        "ranges": ["CalibrationOptions", "calibrate"],
        "report": ["CalibrationReport"],
        "scales": ["Scales", "load_scales"],
    },
)
