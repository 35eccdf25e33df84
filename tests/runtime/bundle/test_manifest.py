import copy
from typing import Any

import pytest

from rism.runtime.bundle.manifest import parse_manifest
from rism.runtime.errors import BundleError


def _set(data: dict[str, Any], key: str, value: object) -> None:
    *way, last = key.split("/")
    for part in way:
        data = data[part]
    data[last] = value


def test_reads_everything(manifest_data: dict[str, Any]) -> None:
    manifest = parse_manifest(manifest_data)
    assert manifest.model.name == "tiny"
    assert manifest.geometry.token_px == 8
    assert manifest.noise.shape == (300, 3)
    assert manifest.captures == ("vectors", "matrices", "scores")
    assert manifest.graphs["vae_encoder"].inputs["image"].shape == (1, 3, "h", "w")


def test_unknown_keys_are_ignored(manifest_data: dict[str, Any]) -> None:
    expected = parse_manifest(copy.deepcopy(manifest_data))
    for key in ("future", "geometry/future", "graphs/transformer.future", "model/future"):
        _set(manifest_data, key, {"anything": [1, 2]})
    manifest_data["schema_version"] = "1.7"
    assert parse_manifest(manifest_data).geometry == expected.geometry


@pytest.mark.parametrize("version", ["2.0", "3.1", "17.0"])
def test_a_newer_major_is_refused_with_the_way_out(
    manifest_data: dict[str, Any], version: str
) -> None:
    manifest_data["schema_version"] = version
    with pytest.raises(BundleError) as error:
        parse_manifest(manifest_data)
    assert str(error.value) == (
        f"the bundle was made by a newer rism (format {version}, this reads 1.x): "
        "install a newer rism-seg, or export again"
    )


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("format", "onnx", "'format' is 'onnx', expected 'rism-bundle'"),
        ("schema_version", 1.0, "'schema_version' is 1.0, expected printable text"),
        ("schema_version", "one", "'schema_version' is 'one', expected a version"),
        ("geometry", [1], "'geometry' is a list of 1, expected an object"),
        ("geometry/token_px", 0, "'geometry.token_px' is 0, expected an integer from 1 to 64"),
        ("geometry/token_px", 65, "'geometry.token_px' is 65, expected an integer"),
        ("geometry/token_px", True, "'geometry.token_px' is True, expected an integer"),
        ("geometry/token_px", 3, "'geometry.multiple_px' is 8, expected a multiple of token_px"),
        ("geometry/std", 0.0, "'geometry.std' is 0.0, expected a number from 1e-06"),
        ("geometry/std", float("nan"), "'geometry.std' is nan, expected a number"),
        ("geometry/mean", float("inf"), "'geometry.mean' is inf, expected a number"),
        ("geometry/mean", 10**400, "'geometry.mean' is a huge integer, expected a number"),
        ("geometry/resample", "magic", "'geometry.resample' is 'magic', expected one of"),
        ("geometry/size_level", 10**30, "'geometry.size_level' is a huge integer, expected"),
        ("prompt/template", "remove it", "expected text with {expression} in it once"),
        ("prompt/template", "{expression}\x1b[2J", "'prompt.template' is"),
        ("prompt/max_length", 10**6, "'prompt.max_length' is 1000000, expected an integer"),
        ("prompt/tokenizer", "../tok.json", "expected a relative path inside the bundle"),
        ("model/name", "x" * 9000, "'model.name' is"),
        ("model/name", "\x1b[31mred", "expected printable text"),
        ("method/tau", 1.0, "'method.tau' is 1.0, expected a number from 0 to below 1"),
        ("noise/shape", [10**6, 10**6], "'noise.shape' is a list of 2, expected [rows, channels]"),
        ("noise/shape", [300, 3, 1], "'noise.shape' is a list of 3, expected [rows, channels]"),
        ("noise/shape", [300, 4], "is 3600 bytes, expected 4800 for noise.shape [300, 4]"),
        ("noise/file", "/etc/passwd", "'noise.file' is '/etc/passwd', expected a relative path"),
        ("default_capture", "telepathy", "'default_capture' is 'telepathy', expected one of"),
        ("graphs/vae_encoder/file", "other.onnx", "names 'other.onnx', which 'files' does not"),
        ("graphs/vae_encoder/file", "C:\\x.onnx", "expected a relative path"),
        ("graphs/vae_encoder/inputs/image/dtype", "int4", "image.dtype' is 'int4', expected one"),
        ("graphs/vae_encoder/inputs/image/shape", [0], "image.shape' is a list of 1, expected"),
        ("graphs/vae_encoder/inputs/secret", {}, "secret.shape' is missing"),
        ("graphs/vae_encoder/outputs", {}, "outputs.clean_latents' is missing, expected a tensor"),
        ("files", {"../x": {}}, "'files' lists '../x', expected relative paths"),
        ("files", {"/x": {}}, "'files' lists '/x', expected relative paths"),
        ("files", {"a\\b": {}}, "expected relative paths"),
        ("files", {".hidden": {}}, "expected relative paths"),
        ("files/noise.f32/sha256", "abc", "expected 64 lower-case hexadecimal digits"),
        ("files/noise.f32/size", -1, "size' is -1, expected an integer from 0"),
    ],
)
def test_a_wrong_value_is_named(
    manifest_data: dict[str, Any], key: str, value: object, expected: str
) -> None:
    _set(manifest_data, key, value)
    with pytest.raises(BundleError) as error:
        parse_manifest(manifest_data)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "key",
    [
        "format", "schema_version", "model", "geometry", "prompt", "method", "noise", "graphs",
        "files", "precision", "default_capture", "geometry/std", "prompt/max_length",
        "graphs/text_encoder", "graphs/vae_encoder/inputs", "files/noise.f32/sha256",
    ],
)  # fmt: skip
def test_a_missing_key_is_named(manifest_data: dict[str, Any], key: str) -> None:
    *way, last = key.split("/")
    node = manifest_data
    for part in way:
        node = node[part]
    del node[last]
    with pytest.raises(BundleError, match=f"{last}' is missing, expected"):
        parse_manifest(manifest_data)


def test_an_input_that_nobody_can_feed_is_refused(manifest_data: dict[str, Any]) -> None:
    spec = {"name": "x", "dtype": "float32", "shape": [1]}
    manifest_data["graphs"]["vae_encoder"]["inputs"]["secret"] = spec
    with pytest.raises(BundleError, match=r"secret' is an object, expected only image"):
        parse_manifest(manifest_data)


@pytest.mark.parametrize("data", [None, [], "x", 3])
def test_not_an_object(data: object) -> None:
    with pytest.raises(BundleError, match=r"the top level is .*, expected an object"):
        parse_manifest(data)
