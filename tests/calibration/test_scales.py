"""Scales in a file, which may come from anybody."""

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from rism.calibration.layers import find_layers, fingerprint
from rism.calibration.open_graph import open_transformer
from rism.calibration.scales import Scales, load_scales, parse_scales
from rism.runtime import BundleError, InputError
from rism.runtime.bundle.reader import Bundle
from tests.calibration.conftest import scales_of
from tests.conftest import seal


@pytest.fixture(scope="module")
def scales(mini_bundle: Bundle) -> Scales:
    return scales_of(open_transformer(mini_bundle).model)


def test_what_is_written_is_read(scales: Scales, mini_bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "scales.json"
    file.write_text(scales.to_json())
    assert load_scales(file, mini_bundle) == scales


def test_every_capture_mode_has_one_fingerprint(mini_bundle: Bundle, scales: Scales) -> None:
    assert len(mini_bundle.manifest.captures) > 1
    for capture in mini_bundle.manifest.captures:
        model = open_transformer(mini_bundle, capture=capture).model
        assert fingerprint(find_layers(model)) == scales.fingerprint


def test_scales_of_another_graph(scales: Scales, mini_bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    data = json.loads(scales.to_json())
    data["graph"] = {"fingerprint": "ab" * 32, "model": "klein-9b", "precision": "bfloat16"}
    file.write_text(json.dumps(data))
    with pytest.raises(InputError) as raised:
        load_scales(file, mini_bundle)
    message = str(raised.value)
    assert "other.json was made for 'klein-9b' in bfloat16" in message
    assert "this bundle is 'mini' in float32" in message
    assert f"rism calibrate {mini_bundle.path} --images DIR" in message
    data = json.loads(scales.to_json())
    data["layers"]["transformer_blocks.9.attn.to_q"] = {"scale": 1.0}
    file.write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"do not agree on layer 'transformer_blocks\.9"):
        load_scales(file, mini_bundle)


def test_a_changed_weight_changes_the_fingerprint(mini_bundle: Bundle, scales: Scales) -> None:
    model = open_transformer(mini_bundle).model
    layer = find_layers(model)[5]
    tensor = layer.weight.const_value
    assert tensor is not None
    changed = tensor.numpy().copy()
    changed[0, 0] += 1
    layer.weight.const_value = ir.tensor(changed, name=layer.weight.name)
    assert fingerprint(find_layers(model)) != scales.fingerprint


def test_weights_outside_the_bundle_are_refused(own_mini: Path) -> None:
    file = own_mini / "transformer.vectors.onnx"
    file.write_bytes(file.read_bytes().replace(b"transformer.weights", b"../../../etc/passwd"))
    with pytest.raises(BundleError, match="lies outside the bundle's files"):
        open_transformer(Bundle.open(seal(own_mini)), capture="vectors")


# A changed part of the file, the new entries in it, and what the message says.
DAMAGE: list[tuple[str, dict[str, Any], str]] = [
    ("", {"format": "x"}, "holds no scales"),
    ("", {"schema_version": "2.0"}, "newer rism (format 2.0, this reads 1.x): install a newer"),
    ("", {"schema_version": "one"}, "'schema_version' is 'one', expected a version such as 1.0"),
    ("", {"number_type": "e5m2"}, "'number_type' is 'e5m2', expected one of 'e4m3'"),
    ("", {"graph": None}, "'graph' is None, expected an object"),
    ("graph", {"fingerprint": "z" * 64}, "expected 64 lower-case hexadecimal digits"),
    ("graph", {"model": "a\nb"}, "'graph.model' is"),
    ("rule", {"name": "best"}, "expected one of 'max', 'percentile', 'mask'"),
    ("rule", {"percentile": 101}, "'rule.percentile' is 101, expected a number"),
    ("", {"samples": True}, "'samples' is True, expected an integer"),
    ("layers", {"x": {"scale": 0}}, "'layers.x.scale' is 0, expected a number"),
    ("layers", {"x": {"scale": float("nan")}}, "'layers.x.scale' is nan"),
    ("layers", {"x": {"scale": 10**400}}, "'layers.x.scale' is a huge integer"),
    ("layers", {"x": 3}, "'layers.x' is 3"),
    ("layers", {"\x1b[2J": {"scale": 1}}, "not printable"),
    ("layers", {f"l{i}": {} for i in range(5000)}, "at most 4096"),
    ("kept", {"transformer_blocks.0.attn.to_q": "probe"}, "has a scale and is kept"),
    ("kept", {"x": ["probe"]}, "'kept.x' is a list"),
]


def test_damaged_files(scales: Scales) -> None:
    for part, entries, message in DAMAGE:
        data = json.loads(scales.to_json())
        (data[part] if part else data).update(entries)
        with pytest.raises(InputError) as raised:
            parse_scales(json.dumps(data).encode(), "scales.json")
        said = str(raised.value)
        assert message in said and "\n" not in said and said.startswith("scales.json")
    for raw in (b"", b"\xff", b"[" * 100_000, b"[]", b'{"format": "rism-bundle"}'):
        with pytest.raises(InputError, match=r"expected a file that|make it again"):
            parse_scales(raw, "scales.json")


def test_what_is_not_there_or_too_large(mini_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rism calibrate BUNDLE --images DIR"):
        load_scales(tmp_path / "none.json", mini_bundle)
    with pytest.raises(InputError, match="not a plain file"):
        load_scales(tmp_path, mini_bundle)
    large = tmp_path / "large.json"
    large.write_bytes(b" " * (8 * 2**20 + 1))
    with pytest.raises(InputError, match="larger than 8 MiB"):
        load_scales(large, mini_bundle)
