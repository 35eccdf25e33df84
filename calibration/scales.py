"""FP8 scales in a file: made by `rism calibrate`, read by whoever inserts them into a graph.

The format is docs/calibration.md. A file may come from anybody: sizes, types and ranges are
checked, what the reader does not know is ignored, and a newer major version is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from rism.calibration.e4m3 import SMALLEST_SCALE
from rism.calibration.layers import Layer, find_layers, fingerprint
from rism.calibration.names import SCALE_RULES
from rism.calibration.open_graph import open_transformer
from rism.runtime.bundle.json_reader import Node, parse_json, read_own_file
from rism.runtime.bundle.reader import Bundle
from rism.runtime.errors import InputError, one_line

SCALES_FILE = "scales.json"
FORMAT = "rism-scales"
SCHEMA_VERSION = "1.0"
READS_MAJOR = 1
_MAX_BYTES = 8 * 2**20
_MAX_NAME = 256
_LARGEST_SCALE = 1e6
_COMMAND = "rism calibrate BUNDLE --images DIR"
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
        samples: number of images with an expression that were run.
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


def scaled_layers(model: ir.Model, scales: Scales) -> list[Layer]:
    """Return a graph's layers that have a scale, in the order they run.

    Raises:
        InputError: a scale is of no layer.
    """
    found = find_layers(model)
    missing = scales.layers.keys() - {layer.name for layer in found}
    if missing:
        raise InputError(
            f"the graph has no layer '{one_line(min(missing), limit=80)}', for which there is a "
            "scale: these scales belong to another graph; run rism calibrate on this bundle"
        )
    return [layer for layer in found if layer.name in scales.layers]


def load_scales(file: str | Path, bundle: Bundle) -> Scales:
    """Read a file of `rism calibrate` and check that it belongs to a bundle.

    Raises:
        InputError: the file is missing, damaged, newer than this reader, or belongs to another
            model or precision.
        BundleError: the bundle's graph cannot be read.
    """
    path = Path(file)
    name = one_line(path.name, limit=60)
    scales = parse_scales(read_own_file(path, _COMMAND, most=_MAX_BYTES), name)
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
    """Check the bytes of a file, which messages call `name`, and return what it says.

    Raises:
        InputError: it is not such a file, or a value is missing, of another type or out of range.
    """
    data = parse_json(raw, name, mend=_AGAIN, error=InputError)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{name} holds no scales, expected a file that rism calibrate wrote")
    return _parse(Node(data, document=name, mend=_AGAIN, error=InputError), name)


def _parse(root: Node, name: str) -> Scales:
    root.version(READS_MAJOR)
    root.choice("number_type", ("e4m3",))
    graph, rule, scales, kept = (root.node(key) for key in ("graph", "rule", "layers", "kept"))
    layers = {
        layer: scales.node(layer).number("scale", SMALLEST_SCALE, _LARGEST_SCALE)
        for layer in scales.names()
    }
    for layer in (*layers, *kept.names()):
        if len(layer) > _MAX_NAME or not layer.isprintable():
            raise InputError(f"{name}: a layer's name is not printable, or too long: {_AGAIN}")
    if both := sorted(layers.keys() & kept.names()):
        raise InputError(
            f"{name}: '{one_line(both[0], limit=80)}' has a scale and is kept, expected one of "
            f"them: {_AGAIN}"
        )
    return Scales(
        fingerprint=graph.digest("fingerprint"),
        model=graph.text("model"),
        precision=graph.text("precision"),
        rule=rule.choice("name", SCALE_RULES),
        percentile=rule.number("percentile", 0.0, 100.0),
        samples=root.integer("samples", 1, 10**9),
        layers=layers,
        kept={layer: kept.text(layer) for layer in kept.names()},
    )
