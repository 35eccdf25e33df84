"""The FP8 error of each layer, as JSON and as a plot."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rism.calibration.activation_moments import Moments
from rism.calibration.scales import Scales
from rism.runtime.atomic_write import write_atomically
from rism.runtime.distribution import install_hint
from rism.runtime.errors import RismError, one_line

FORMAT = "rism-calibration-report"


@dataclass(frozen=True)
class MaskAgreement:
    """IoU of the FP8 graph's masks with those of the bundle's own, on the calibration images."""

    mean_iou: float
    lowest_iou: float


@dataclass(frozen=True)
class LayerReport:
    """One layer.

    Attributes:
        name: of the layer.
        shape: of its stored weight.
        kept: why it is not quantised; None where it is. The rest is None where this is set.
        amax: largest magnitude of its activations.
        scale: of its activations.
        activation_error: root mean square of their rounding error over their own.
        saturated: share of them beyond 448 times the scale.
        weight_error: likewise of the weight, with a scale for each output channel.
    """

    name: str
    shape: tuple[int, ...]
    kept: str | None = None
    amax: float | None = None
    scale: float | None = None
    activation_error: float | None = None
    saturated: float | None = None
    weight_error: float | None = None

    def to_json_dict(self) -> dict[str, Any]:
        """Return what is known, with errors also as signal to noise in decibels."""
        data = {key: value for key, value in asdict(self).items() if value is not None}
        for part in ("activation", "weight"):
            error = data.get(f"{part}_error")
            if error is not None:
                data[f"{part}_sqnr_db"] = round(_decibels(error), 2)
        return data


@dataclass(frozen=True)
class CalibrationReport:
    """The scales, every layer, and the agreement of masks by percentile where it was measured.

    `moments` are those of the activations of the layers that have a scale.
    """

    scales: Scales
    layers: Sequence[LayerReport]
    masks: Mapping[float, MaskAgreement]
    moments: Mapping[str, Moments] = field(default_factory=dict)

    @property
    def chosen(self) -> MaskAgreement | None:
        """The agreement of masks at the chosen percentile; None where it was not measured."""
        return self.masks.get(self.scales.percentile)

    def to_json(self) -> str:
        """Return the file's text."""
        data = {
            "format": FORMAT,
            "schema_version": "1.0",
            "model": self.scales.model,
            "precision": self.scales.precision,
            "fingerprint": self.scales.fingerprint,
            "rule": {"name": self.scales.rule, "percentile": self.scales.percentile},
            "samples": self.scales.samples,
            "masks": [
                {"percentile": percentile, **asdict(found)}
                for percentile, found in self.masks.items()
            ],
            "layers": [layer.to_json_dict() for layer in self.layers],
        }
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def check_plotter() -> None:
    """Check that matplotlib is installed, before hours of calibration.

    Raises:
        RismError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        raise RismError(
            f"--plot needs {error.name}, which is not installed: {install_hint('calibrate')}"
        ) from error


def plot_report(report: CalibrationReport, file: Path) -> None:
    """Draw error and saturation of each quantised layer; the file is .png, .svg or .pdf.

    Raises:
        RismError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    check_plotter()
    from matplotlib.figure import Figure

    layers = [layer for layer in report.layers if layer.kept is None]
    figure = Figure(figsize=(10, 2 + 0.2 * len(layers)), layout="constrained")
    errors, saturation = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])
    rows = range(len(layers))
    errors.plot([_decibels(layer.activation_error or 0) for layer in layers], rows, "o", ms=4)
    errors.plot([_decibels(layer.weight_error or 0) for layer in layers], rows, "x", ms=4)
    errors.legend(["activations", "weights"])
    errors.set_xlabel("signal to rounding noise, dB")
    errors.set_yticks(rows, [layer.name for layer in layers], fontsize=6)
    errors.invert_yaxis()
    saturation.barh(rows, [1e6 * (layer.saturated or 0) for layer in layers])
    saturation.set_xlim(left=0)
    saturation.set_xlabel("saturated, of a million")
    figure.suptitle(
        f"{one_line(report.scales.model, limit=60)} in E4M3, rule {report.scales.rule}, "
        f"percentile {report.scales.percentile:g}, {report.scales.samples} samples"
    )
    drawn = io.BytesIO()
    figure.savefig(drawn, format=file.suffix[1:].lower())
    write_atomically(file, drawn.getvalue())


def _decibels(error: float) -> float:
    return -20 * math.log10(max(error, 1e-9))
