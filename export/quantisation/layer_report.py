"""The error of each layer whose weights were rounded to few bits."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rism.export.checkpoint.meta_modules import Part

FORMAT = "rism-rounding-report"


@dataclass(frozen=True)
class RoundedLayer:
    """One linear layer of a part of which some are rounded.

    Attributes:
        part: the part of the model, such as "transformer".
        name: of the layer.
        shape: of its weight, (out, in).
        kept: why it is not rounded; None where it is. The rest is None where this is set.
        bits: of an integer.
        block: numbers of a row that share a scale.
        weight_error: root mean square of the rounding error over that of the weight.
    """

    part: str
    name: str
    shape: tuple[int, ...]
    kept: str | None = None
    bits: int | None = None
    block: int | None = None
    weight_error: float | None = None


def layer_report(part: Part, errors: Mapping[str, float]) -> Iterator[RoundedLayer]:
    """Report the layers of a part.

    Args:
        part: which of its layers are rounded, and why others are not.
        errors: by the ends of names of weights in a graph.
    """
    by_name = {key.removeprefix("dit."): error for key, error in errors.items()}
    for weight, rounding in part.rounded.items():
        yield RoundedLayer(
            part.name,
            weight.removesuffix(".weight"),
            tuple(part.rules[weight].shape),
            bits=rounding.bits,
            block=rounding.block,
            weight_error=by_name.get(weight),
        )
    for name, reason in part.kept.items():
        shape = tuple(part.rules[f"{name}.weight"].shape)
        yield RoundedLayer(part.name, name, shape, kept=reason)


def report_json(layers: Sequence[RoundedLayer]) -> str:
    """Return the text of a report's file: errors are also given as signal to noise in decibels."""
    rows = []
    for layer in layers:
        row = {key: value for key, value in asdict(layer).items() if value is not None}
        if layer.weight_error:
            row["weight_sqnr_db"] = round(-20 * math.log10(layer.weight_error), 2)
        rows.append(row)
    data = {"format": FORMAT, "schema_version": "1.0", "layers": rows}
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"
