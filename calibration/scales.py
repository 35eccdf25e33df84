"""FP8 scales in a file: made by `rism calibrate`, read by whoever inserts them into a graph.

The format is docs/calibration.md. A file may come from anybody: sizes, types and ranges are
checked, what the reader does not know is ignored, and a newer major version is refused.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rism.calibration.e4m3 import SMALLEST_SCALE
from rism.calibration.layers import find_layers, fingerprint
from rism.calibration.open_graph import open_transformer
from rism.runtime.bundle.reader import Bundle
from rism.runtime.distribution import DISTRIBUTION
from rism.runtime.errors import InputError, one_line

__all__ = ["RULES", "SCALES_FILE", "Scales", "load_scales", "parse_scales"]

SCALES_FILE = "scales.json"
RULES = ("max", "percentile", "mask")
FORMAT = "rism-scales"
SCHEMA_VERSION = "1.0"
READS_MAJOR = 1
_MAX_BYTES = 8 * 2**20
_MAX_LAYERS = 4096
_MAX_NAME = 256
_LARGEST_SCALE = 1e6
_DIGEST = re.compile(r"[0-9a-f]{64}")
_AGAIN = "make it again with rism calibrate"


@dataclass(frozen=True)
class Scales:
    """What a transformer's layers are quantised with.

    Attributes:
        fingerprint: of the graph that they belong to (`rism.calibration.layers.fingerprint`).
        model: its name, for messages.
        precision: what its graphs compute in, likewise.
        rule: "max", "percentile" or "mask".
        percentile: of the magnitudes that are not cut off: 100 with "max".
        samples: how many pictures with an expression were run.
        layers: scale of the activations by layer; weights have theirs computed, by channel.
        kept: layers that are not quantised, and why.
    """

    fingerprint: str
    model: str
    precision: str
    rule: str
    percentile: float
    samples: int
    layers: Mapping[str, float]
    kept: Mapping[str, str]

    def to_json(self) -> str:
        """Return the file's text."""
        data = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "number_type": "e4m3",
            "graph": {
                "fingerprint": self.fingerprint,
                "model": self.model,
                "precision": self.precision,
            },
            "rule": {"name": self.rule, "percentile": self.percentile},
            "samples": self.samples,
            "layers": {name: {"scale": scale} for name, scale in self.layers.items()},
            "kept": dict(self.kept),
        }
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def load_scales(file: str | Path, bundle: Bundle) -> Scales:
    """Read a file of `rism calibrate` and check that it belongs to a bundle.

    Args:
        file: the file.
        bundle: an open bundle.

    Raises:
        InputError: the file is missing, damaged, newer than this reader, or belongs to another
            model or precision.
        BundleError: the bundle's graph cannot be read.
    """
    path = Path(file)
    name = one_line(path.name, limit=60)
    scales = parse_scales(_read(path, name), name)
    layers = find_layers(open_transformer(bundle).model)
    if scales.fingerprint != fingerprint(layers):
        manifest = bundle.manifest
        raise InputError(
            f"{name} was made for '{one_line(scales.model, limit=60)}' in "
            f"{one_line(scales.precision, limit=20)} (graph {scales.fingerprint[:12]}), this "
            f"bundle is '{one_line(manifest.model.name, limit=60)}' in "
            f"{one_line(manifest.precision.compute, limit=20)} (graph "
            f"{fingerprint(layers)[:12]}): rism calibrate {bundle.path} --images DIR"
        )
    known = {layer.name for layer in layers}
    if known != {*scales.layers, *scales.kept}:
        other = sorted(known ^ {*scales.layers, *scales.kept})[0]
        raise InputError(
            f"{name} and the bundle do not agree on layer '{one_line(other, limit=80)}', "
            f"expected each of the bundle's {len(known)} layers once: {_AGAIN}"
        )
    return scales


def parse_scales(raw: bytes, name: str) -> Scales:
    """Check the bytes of a file and return what it says.

    Args:
        raw: at most 8 MiB.
        name: of the file, for messages.

    Raises:
        InputError: it is not such a file, or a value is missing, of another type or out of range.
    """
    try:
        data = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{name} is not readable JSON ({one_line(error, limit=120)}): {_AGAIN}"
        ) from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{name} holds no scales, expected a file that rism calibrate wrote")
    version = data.get("schema_version")
    if not isinstance(version, str) or re.fullmatch(r"\d{1,6}\.\d{1,6}", version, re.A) is None:
        raise InputError(f"{name}: 'schema_version' is not one, expected 1.0: {_AGAIN}")
    if int(version.partition(".")[0]) != READS_MAJOR:
        raise InputError(
            f"{name} has format {version}, this reads {READS_MAJOR}.x: install a newer "
            f"{DISTRIBUTION}, or {_AGAIN}"
        )
    graph, rule = _object(data, "graph", name), _object(data, "rule", name)
    if data.get("number_type") != "e4m3":
        raise InputError(f"{name}: 'number_type' is not 'e4m3', the only one there is: {_AGAIN}")
    digest = _text(graph, "fingerprint", name)
    if _DIGEST.fullmatch(digest) is None:
        raise InputError(f"{name}: 'fingerprint' is not 64 hexadecimal digits: {_AGAIN}")
    if rule.get("name") not in RULES:
        raise InputError(f"{name}: 'rule.name' is not one of {', '.join(RULES)}: {_AGAIN}")
    layers = {
        layer: _scale(entry, layer, name) for layer, entry in _object(data, "layers", name).items()
    }
    kept = _object(data, "kept", name)
    for layer in (*layers, *kept):
        if len(layer) > _MAX_NAME or not layer.isprintable():
            raise InputError(f"{name}: a layer's name is not printable, or too long: {_AGAIN}")
    if both := sorted(layers.keys() & kept.keys()):
        raise InputError(
            f"{name}: '{one_line(both[0], limit=80)}' has a scale and is kept, expected one of "
            f"them: {_AGAIN}"
        )
    return Scales(
        fingerprint=digest,
        model=_text(graph, "model", name),
        precision=_text(graph, "precision", name),
        rule=str(rule["name"]),
        percentile=_number(rule.get("percentile"), 0.0, 100.0, f"{name}: 'rule.percentile'"),
        samples=int(_number(data.get("samples"), 1, 1e9, f"{name}: 'samples'")),
        layers=layers,
        kept={layer: _text(kept, layer, name) for layer in kept},
    )


def _read(path: Path, name: str) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{name} is not a plain file, expected one that rism calibrate wrote")
        with path.open("rb") as handle:
            raw = handle.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError(
            f"there are no scales at {one_line(path)}: make them with rism calibrate BUNDLE "
            "--images DIR"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{one_line(path)} cannot be read: {one_line(reason)}") from None
    if len(raw) > _MAX_BYTES:
        raise InputError(
            f"{name} has more than {_MAX_BYTES} bytes, expected a file that rism calibrate wrote"
        )
    return raw


def _object(data: Mapping[str, Any], key: str, name: str) -> dict[str, Any]:
    value = data.get(key)
    if not isinstance(value, dict) or len(value) > _MAX_LAYERS:
        raise InputError(
            f"{name}: '{key}' is not an object of at most {_MAX_LAYERS} entries: {_AGAIN}"
        )
    return value


def _text(data: Mapping[str, Any], key: str, name: str) -> str:
    value = data.get(key)
    if not isinstance(value, str) or len(value) > _MAX_NAME or not value.isprintable():
        raise InputError(
            f"{name}: '{one_line(key, limit=80)}' is not text of at most {_MAX_NAME} printable "
            f"characters: {_AGAIN}"
        )
    return value


def _scale(entry: object, layer: str, name: str) -> float:
    value = entry.get("scale") if isinstance(entry, dict) else None
    where = f"{name}: the scale of '{one_line(layer, limit=80)}'"
    return _number(value, SMALLEST_SCALE, _LARGEST_SCALE, where)


def _number(value: object, low: float, high: float, where: str) -> float:
    sound = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Compared before it is converted: an integer may be larger than any float.
    if not sound or not low <= value <= high or not math.isfinite(value):  # type: ignore[operator, arg-type]
        raise InputError(f"{where} is not a number from {low:g} to {high:g}: {_AGAIN}")
    return float(value)  # type: ignore[arg-type]
