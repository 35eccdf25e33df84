"""Scales in a file, which may come from anybody."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from rism.calibration.layers import find_layers, fingerprint, kept_layers
from rism.calibration.open_graph import open_transformer
from rism.calibration.scales import Scales, load_scales, parse_scales
from rism.runtime import BundleError, InputError
from rism.runtime.bundle.reader import Bundle

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def bundle(mini_bundle: Bundle) -> Bundle:
    return mini_bundle


@pytest.fixture(scope="module")
def scales(bundle: Bundle) -> Scales:
    layers = find_layers(open_transformer(bundle).model)
    kept = kept_layers([layer.name for layer in layers])
    return Scales(
        fingerprint=fingerprint(layers),
        model="mini",
        precision="float32",
        rule="percentile",
        percentile=99.99,
        samples=4,
        layers={layer.name: 0.01 for layer in layers if layer.name not in kept},
        kept=kept,
    )


def test_what_is_written_is_read(scales: Scales, bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "scales.json"
    file.write_text(scales.to_json())
    assert load_scales(file, bundle) == scales


def test_every_capture_mode_has_one_fingerprint(bundle: Bundle, scales: Scales) -> None:
    assert len(bundle.manifest.captures) > 1
    for capture in bundle.manifest.captures:
        model = open_transformer(bundle, capture=capture).model
        assert fingerprint(find_layers(model)) == scales.fingerprint


def test_scales_of_another_graph(scales: Scales, bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    data = json.loads(scales.to_json())
    data["graph"] = {"fingerprint": "ab" * 32, "model": "klein-9b", "precision": "bfloat16"}
    file.write_text(json.dumps(data))
    with pytest.raises(InputError) as raised:
        load_scales(file, bundle)
    message = str(raised.value)
    assert "other.json was made for 'klein-9b' in bfloat16" in message
    assert "this bundle is 'mini' in float32" in message
    assert f"rism calibrate {bundle.path} --images DIR" in message
    data = json.loads(scales.to_json())
    data["layers"]["transformer_blocks.9.attn.to_q"] = {"scale": 1.0}
    file.write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"do not agree on layer 'transformer_blocks\.9"):
        load_scales(file, bundle)


def test_a_changed_weight_changes_the_fingerprint(bundle: Bundle, scales: Scales) -> None:
    model = open_transformer(bundle).model
    layer = find_layers(model)[5]
    tensor = layer.weight.const_value
    assert tensor is not None
    changed = tensor.numpy().copy()
    changed[0, 0] += 1
    layer.weight.const_value = ir.tensor(changed, name=layer.weight.name)
    assert fingerprint(find_layers(model)) != scales.fingerprint


def test_weights_outside_the_bundle_are_refused(
    tmp_path: Path, mini_folder: Path, reseal: Callable[..., Path]
) -> None:
    folder = tmp_path / "mini"
    shutil.copytree(mini_folder, folder)
    file = folder / "transformer.vectors.onnx"
    model = onnx.load(file, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../elsewhere.weights"
    file.write_bytes(model.SerializeToString())
    reseal(folder)
    with pytest.raises(BundleError, match="lies outside the bundle's files"):
        open_transformer(Bundle.open(folder), capture="vectors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="x"), "holds no scales"),
        (lambda d: d.update(schema_version="2.0"), "format 2.0, this reads 1.x: install a newer"),
        (lambda d: d.update(schema_version=1), "'schema_version' is not one"),
        (lambda d: d.update(number_type="e5m2"), "'number_type' is not 'e4m3'"),
        (lambda d: d.pop("graph"), "'graph' is not an object"),
        (lambda d: d["graph"].update(fingerprint="z" * 64), "not 64 hexadecimal digits"),
        (lambda d: d["graph"].update(model="a\nb"), "'model' is not text"),
        (lambda d: d["rule"].update(name="best"), "not one of max, percentile, mask"),
        (lambda d: d["rule"].update(percentile=101), "'rule.percentile' is not a number"),
        (lambda d: d.update(samples=True), "'samples' is not a number"),
        (lambda d: d["layers"].update(x={"scale": 0}), "the scale of 'x' is not a number"),
        (lambda d: d["layers"].update(x={"scale": float("nan")}), "the scale of 'x'"),
        (lambda d: d["layers"].update(x={"scale": 10**400}), "the scale of 'x'"),
        (lambda d: d["layers"].update(x={"scale": "1"}), "the scale of 'x'"),
        (lambda d: d["layers"].update(x=3), "the scale of 'x'"),
        (lambda d: d["layers"].update({"\x1b[2J": {"scale": 1}}), "not printable"),
        (lambda d: d["layers"].update({f"l{i}": {} for i in range(5000)}), "at most 4096"),
        (lambda d: d["kept"].update({next(iter(d["layers"])): "probe"}), "has a scale and is kept"),
        (lambda d: d["kept"].update(x=["probe"]), "'x' is not text"),
    ],
)
def test_damaged_files(scales: Scales, change: Change, message: str) -> None:
    data = json.loads(scales.to_json())
    change(data)
    with pytest.raises(InputError) as raised:
        parse_scales(json.dumps(data).encode(), "scales.json")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("scales.json")


@pytest.mark.parametrize("raw", [b"", b"\xff", b"[" * 100_000, b"[]", b'{"format": "rism-bundle"}'])
def test_what_is_no_such_file(raw: bytes) -> None:
    with pytest.raises(InputError, match=r"expected a file that|make it again"):
        parse_scales(raw, "scales.json")


def test_what_is_not_there_or_too_large(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rism calibrate BUNDLE --images DIR"):
        load_scales(tmp_path / "none.json", bundle)
    with pytest.raises(InputError, match="not a plain file"):
        load_scales(tmp_path, bundle)
    large = tmp_path / "large.json"
    large.write_bytes(b" " * (8 * 2**20 + 1))
    with pytest.raises(InputError, match="more than 8388608 bytes"):
        load_scales(large, bundle)
