"""What a manifest says about engines and test vectors, as hostile as any other JSON."""

import copy
import json
from typing import Any

import pytest

from rism.runtime.bundle.engine_spec import ShapeRange
from rism.runtime.bundle.manifest import parse_manifest
from rism.runtime.errors import BundleError

SHA = "0" * 64


@pytest.fixture
def data(manifest_data: dict[str, Any]) -> dict[str, Any]:
    manifest = copy.deepcopy(manifest_data)
    for name in ("engines/a/v.plan", "engines/a/v.json", "engines/a/v.refit.onnx", "scales.json"):
        manifest["files"][name] = {"sha256": SHA, "size": 10}
    manifest["files"]["selftest.bin"] = {"sha256": SHA, "size": 4 * (768 + 12)}
    manifest["engines"] = [
        {
            "name": "a", "target": "tensorrt-rtx", "version": "1.7.1.116",
            "platform": "linux-x86_64", "compute_capabilities": ["8.6", "12.0"],
            "precision": "fp16", "stripped": True,
            "graphs": {
                "vae_encoder": {
                    "file": "engines/a/v.plan", "layers": "engines/a/v.json",
                    "refit": "engines/a/v.refit.onnx",
                    "shapes": {"image": {"min": [1, 3, 8, 8], "opt": [1, 3, 64, 64],
                                         "max": [1, 3, 256, 256]}},
                }
            },
        }
    ]  # fmt: skip
    manifest["calibration"] = {"file": "scales.json", "graph": "transformer"}
    manifest["self_test"] = {
        "file": "selftest.bin",
        "made_by": "onnxruntime-cpu 1.31.1",
        "graphs": {
            "vae_encoder": {
                "inputs": {"image": {"dtype": "float32", "shape": [1, 3, 16, 16], "offset": 0}},
                "outputs": {
                    "clean_latents": {"dtype": "float32", "shape": [1, 4, 3], "offset": 3072}
                },
            }
        },
    }
    return manifest


def test_it_is_read(data: dict[str, Any]) -> None:
    manifest = parse_manifest(data)
    (variant,) = manifest.engines
    assert (variant.name, variant.target, variant.precision) == ("a", "tensorrt-rtx", "fp16")
    assert variant.compute_capabilities == ("8.6", "12.0")
    plan = variant.graphs["vae_encoder"]
    assert (plan.file, plan.layers) == ("engines/a/v.plan", "engines/a/v.json")
    assert plan.refit == "engines/a/v.refit.onnx"
    assert (plan.weights, variant.bound) == (None, False)
    each = plan.shapes["image"]
    assert each == ShapeRange((1, 3, 8, 8), (1, 3, 64, 64), (1, 3, 256, 256))
    assert each.holds((1, 3, 256, 8)) and not each.holds((1, 3, 257, 8)) and not each.holds((1, 3))
    assert manifest.calibration == "scales.json"
    assert manifest.self_test is not None
    stored = manifest.self_test.graphs["vae_encoder"]
    assert stored.outputs["clean_latents"].nbytes == 48


def test_weights_as_inputs(data: dict[str, Any]) -> None:
    plan = data["engines"][0]["graphs"]["vae_encoder"]
    plan["weights"] = "engines/a/v.json"
    (variant,) = parse_manifest(data).engines
    assert variant.graphs["vae_encoder"].weights == "engines/a/v.json" and variant.bound
    for wrong, says in (("engines/a/w.json", "which 'files' does not list"), ("../v.json", "path")):
        plan["weights"] = wrong
        with pytest.raises(BundleError, match=f"weights' .*{says}"):
            parse_manifest(data)


def test_a_bundle_needs_none_of_it(manifest_data: dict[str, Any]) -> None:
    manifest = parse_manifest(manifest_data)
    assert (manifest.engines, manifest.self_test, manifest.calibration) == ((), None, None)


def test_what_a_newer_builder_may_write(data: dict[str, Any]) -> None:
    """A target, a precision, a graph that this reader does not know: the bundle still opens."""
    data["engines"][0] |= {"target": "openvino", "precision": "fp4", "future": 1}
    data["graphs"]["refiner"] = {"file": "refiner.onnx"}
    data["engines"][0]["graphs"]["refiner"] = {"anything": True}
    data["self_test"]["graphs"]["refiner"] = 7
    (variant,) = parse_manifest(data).engines
    assert list(variant.graphs) == ["vae_encoder"]


VARIANT = "engines[0]"
PLAN = f"{VARIANT}.graphs.vae_encoder"
TENSOR = "self_test.graphs.vae_encoder.outputs.clean_latents"


@pytest.mark.parametrize(
    ("way", "value", "says"),
    [
        (("engines",), {}, "'engines' is an object, expected a list of at most 64"),
        (("engines",), [{}] * 65, "'engines' is a list of 65, expected a list of at most 64"),
        (("engines", 0), [], f"'{VARIANT}' is a list of 0, expected an object"),
        (("engines", 0, "name"), "../a", f"'{VARIANT}.name' is '../a', expected a name of a-z"),
        (("engines", 0, "name"), "A", f"'{VARIANT}.name' is 'A'"),
        (("engines", 0, "target"), "\x1b[2J", f"'{VARIANT}.target' is"),
        (("engines", 0, "version"), 1.7, f"'{VARIANT}.version' is 1.7, expected a version"),
        (("engines", 0, "version"), "latest", f"'{VARIANT}.version' is 'latest'"),
        (("engines", 0, "platform"), None, f"'{VARIANT}.platform' is None"),
        (("engines", 0, "stripped"), "no", f"'{VARIANT}.stripped' is 'no', expected true"),
        (("engines", 0, "compute_capabilities"), [], "is a list of 0, expected a list of compute"),
        (("engines", 0, "compute_capabilities"), [8.6], "expected a list of compute capabilities"),
        (("engines", 0, "graphs"), {}, f"'{VARIANT}.graphs' is an object, expected a plan of at"),
        (("engines", 0, "graphs"), {"nose": {}}, f"'{VARIANT}.graphs.nose' is an object, expected"),
        (("engines", 0, "graphs", "vae_encoder", "file"), "/a", f"'{PLAN}.file' is '/a', expected"),
        (
            ("engines", 0, "graphs", "vae_encoder", "file"),
            "b.plan",
            "names 'b.plan', which 'files'",
        ),
        (("engines", 0, "graphs", "vae_encoder", "refit"), 3, f"'{PLAN}.refit' is 3, expected a"),
        (("engines", 0, "graphs", "vae_encoder", "shapes"), {}, "shapes.image' is missing, expect"),
        (
            ("engines", 0, "graphs", "vae_encoder", "shapes", "tau"),
            {},
            "shapes.tau' is an object, expected only inputs of the graph (image)",
        ),
        (
            ("engines", 0, "graphs", "vae_encoder", "shapes", "image", "max"),
            [1, 4, 256, 256],
            "image.max' is a list of 4, expected a shape of the graph's input, [1, 3, 'h', 'w']",
        ),
        (
            ("engines", 0, "graphs", "vae_encoder", "shapes", "image", "min"),
            [1, 3, 65, 8],
            "image.opt' is a list of 4, expected sizes from those of 'min' to those of 'max'",
        ),
        (
            ("engines", 0, "graphs", "vae_encoder", "shapes", "image", "opt"),
            [1, 3, 64, -1],
            "image.opt' is a list of 4, expected a list of at most 8 sizes, 1 to",
        ),
        (("calibration",), "scales.json", "'calibration' is 'scales.json', expected an object"),
        (("calibration", "file"), "other.json", "names 'other.json', which 'files' does not list"),
        (("self_test", "file"), "../x", "'self_test.file' is '../x', expected a relative path"),
        (("self_test", "made_by"), 7, "'self_test.made_by' is 7, expected printable text"),
        (
            ("self_test", "graphs", "vae_encoder", "inputs"),
            {},
            "inputs.image' is missing, expected every input of the graph",
        ),
        (
            ("self_test", "graphs", "vae_encoder", "outputs"),
            {},
            "outputs' is an object, expected at least one output",
        ),
        (
            ("self_test", "graphs", "vae_encoder", "outputs", "clean_latents", "offset"),
            3073,
            f"'{TENSOR}.offset' is 3073, expected 48 bytes inside a file of 3120",
        ),
        (
            ("self_test", "graphs", "vae_encoder", "outputs", "clean_latents", "offset"),
            -1,
            f"'{TENSOR}.offset' is -1, expected an integer from 0",
        ),
        (
            ("self_test", "graphs", "vae_encoder", "outputs", "clean_latents", "shape"),
            [1, 2**31, 3],
            f"'{TENSOR}.offset' is 3072, expected 25769803776 bytes inside",
        ),
        (
            ("self_test", "graphs", "vae_encoder", "outputs", "clean_latents", "shape"),
            [1, 4, 4],
            f"'{TENSOR}.shape' is a list of 3, expected a shape of the graph's tensor",
        ),
        (
            ("self_test", "graphs", "vae_encoder", "outputs", "clean_latents", "dtype"),
            "float16",
            f"'{TENSOR}.dtype' is 'float16', expected the graph's, 'float32'",
        ),
        (("files", "selftest.bin", "size"), 2**33, "expected a file of at most 4294967296 bytes"),
    ],
)
def test_a_wrong_value_is_named(
    data: dict[str, Any], way: tuple[Any, ...], value: object, says: str
) -> None:
    node: Any = data
    for key in way[:-1]:
        node = node[key]
    node[way[-1]] = value
    with pytest.raises(BundleError) as error:
        parse_manifest(json.loads(json.dumps(data)))
    assert says in str(error.value)
    assert str(error.value).isprintable()


def test_two_engines_of_one_name(data: dict[str, Any]) -> None:
    data["engines"] *= 2
    with pytest.raises(BundleError, match=r"engines\[1\].name' is 'a', expected a name that no"):
        parse_manifest(data)


def test_what_is_not_stripped_needs_no_weights(data: dict[str, Any]) -> None:
    data["engines"][0]["stripped"] = False
    del data["engines"][0]["graphs"]["vae_encoder"]["refit"]
    assert parse_manifest(data).engines[0].graphs["vae_encoder"].refit is None
