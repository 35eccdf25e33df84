"""What is read of a manifest, and what is said of one that is wrong, whoever wrote it."""

import json
from collections.abc import Callable

import pytest

from rism.runtime.bundle.confidence_rule import ConfidenceRule
from rism.runtime.bundle.engine_spec import ShapeRange
from rism.runtime.bundle.manifest import parse_manifest
from rism.runtime.bundle.scope import Scope
from rism.runtime.errors import BundleError
from tests import broken_manifests as broken
from tests.broken_manifests import Broken, Json, change, mini, sized, with_engine
from tests.conftest import seal
from tests.runtime.vision_language import make_bundle


def refused(data: object, says: str) -> None:
    with pytest.raises(BundleError) as error:
        parse_manifest(data)
    assert says in str(error.value)
    assert str(error.value).isprintable()


def test_reads_everything() -> None:
    manifest = parse_manifest(mini())
    assert manifest.model.name == "mini" and manifest.model.scope == Scope(
        tuple(mini()["model"]["scope"]["nouns"])
    )
    assert manifest.geometry.token_px == 16
    assert manifest.noise.shape == (576, 384)
    assert manifest.captures == ("vectors", "matrices", "scores")
    assert manifest.graphs["vae_encoder"].inputs["image"].shape == (1, 3, "height", "width")
    assert isinstance(manifest.method.confidence, ConfidenceRule)
    assert (manifest.engines, manifest.self_test, manifest.calibration) == ((), None, None)


def test_what_a_newer_writer_adds_is_ignored() -> None:
    """Unknown keys; of engines a target, a precision and a graph that this reader lacks."""
    data, expected = with_engine(), parse_manifest(with_engine())
    for way in ("future", "geometry future", "graphs transformer.future", "model future"):
        data = change(data, way, {"anything": [1, 2]})
    data["schema_version"] = "1.7"
    assert parse_manifest(data) == parse_manifest({**with_engine(), "schema_version": "1.7"})
    data["engines"][0] |= {"target": "openvino", "precision": "fp4", "future": 1}
    data["graphs"]["refiner"] = {"file": "refiner.onnx"}
    data["engines"][0]["graphs"]["refiner"] = {"anything": True}
    data["self_test"]["graphs"]["refiner"] = 7
    # Nothing of the prompt looks at the image.
    data["graphs"]["vision_encoder"] = {}
    manifest = parse_manifest(data)
    assert manifest.graphs == expected.graphs
    assert list(manifest.engines[0].graphs) == ["vae_encoder"]


def test_an_engine_is_read() -> None:
    manifest = parse_manifest(with_engine())
    (variant,) = manifest.engines
    assert (variant.name, variant.target, variant.precision) == ("a", "tensorrt-rtx", "fp16")
    assert variant.compute_capabilities == ("8.6", "12.0")
    plan = variant.graphs["vae_encoder"]
    assert (plan.file, plan.layers, plan.refit) == ("v.plan", "v.json", "v.refit.onnx")
    assert (plan.weights, variant.bound) == (None, False)
    each = plan.shapes["image"]
    assert each == ShapeRange((1, 3, 8, 8), (1, 3, 64, 64), (1, 3, 256, 256))
    assert each.holds((1, 3, 256, 8)) and not each.holds((1, 3, 257, 8)) and not each.holds((1, 3))
    assert manifest.calibration == "scales.json"
    assert manifest.self_test is not None
    assert manifest.self_test.graphs["vae_encoder"].outputs["clean_latents"].nbytes == 1536
    data = change(with_engine(), f"{broken.PLAN} weights", "v.json")
    assert parse_manifest(data).engines[0].bound
    data = change(change(data, f"{broken.ENGINE} stripped", False), f"{broken.PLAN} refit", 3)
    assert parse_manifest(data).engines[0].graphs["vae_encoder"].refit is None


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> Json:
    folder = seal(make_bundle(tmp_path_factory.mktemp("looking") / "bundle"))
    data: Json = json.loads((folder / "manifest.json").read_text())
    return data


def wrong(cases: list[Broken], whole: Json) -> None:
    parse_manifest(whole)
    for way, value, says, *_ in cases:
        try:
            refused(change(whole, way, value), says)
        except BaseException as error:
            error.add_note(f"{way}: {value}")
            raise


@pytest.mark.parametrize(
    ("cases", "whole"),
    [(broken.MINI, mini), (broken.SIZED, sized), (broken.WITH_ENGINE, with_engine)],
    ids=["mini", "sized", "engine"],
)
def test_a_wrong_value_is_named(cases: list[Broken], whole: Callable[[], Json]) -> None:
    wrong(cases, whole())


def test_a_wrong_value_of_a_prompt_with_an_image_is_named(looking: Json) -> None:
    wrong(broken.LOOKING, looking)
    blind = change(change(looking, "prompt vision", None), "prompt positions", "none")
    refused(blind, "text_encoder.inputs.position_ids' is an object, expected only input_ids, atte")
    lanczos = change(looking, "prompt vision arithmetic", "torchvision")
    refused(
        change(lanczos, "prompt vision resample", "lanczos"),
        "vision.resample' is 'lanczos', expected bilinear or bicubic, where 'arithmetic' is",
    )


def test_two_engines_of_one_name() -> None:
    data = with_engine()
    data["engines"] *= 2
    refused(data, "engines[1].name' is 'a', expected a name that no other")


@pytest.mark.parametrize("data", [None, [], "x", 3])
def test_not_an_object(data: object) -> None:
    refused(data, "the top level is ")
