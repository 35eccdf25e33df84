"""Profiles hold whatever a bundle's geometry makes of pictures and expressions."""

from dataclasses import replace

import numpy as np
import pytest

from rism.runtime.bundle.graph_spec import TensorSpec
from rism.runtime.bundle.manifest import Geometry, Manifest
from rism.runtime.bundle.reader import Bundle, resolve_bundle
from rism.runtime.engines.shape_profiles import profile, ranges
from rism.runtime.errors import InputError
from rism.runtime.image import geometry


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return Bundle.open(resolve_bundle(), verify=False).manifest


def sizes(manifest: Manifest, rules: Geometry | None = None, **options: object) -> dict[str, tuple]:
    return ranges(rules or manifest.geometry, manifest.prompt, manifest.noise.shape[0], **options)


@pytest.mark.parametrize("resize", ["always", "shrink"])
def test_every_picture_is_inside(manifest: Manifest, resize: str) -> None:
    rules = replace(manifest.geometry, resize=resize)
    found = sizes(manifest, rules)
    rng = np.random.default_rng(3)
    seen = 0
    for width, height in rng.integers(16, 4000, (6000, 2)):
        ratio = max(width, height) / min(width, height)
        small = resize == "shrink" and width * height < rules.size_level**2
        if ratio > rules.max_aspect or small:
            continue
        plan = geometry.plan((int(width), int(height)), rules)
        for name, value in (
            ("tokens", plan.tokens),
            ("height", plan.grid_hw[0] * rules.token_px),
            ("width", plan.grid_hw[1] * rules.token_px),
        ):
            low, _, high = found[name]
            assert low <= value <= high, (name, value, (width, height))
        seen += 1
    assert seen > 500


def test_prompts_and_batches(manifest: Manifest) -> None:
    found = sizes(manifest, batch=(1, 2, 4))
    assert found["batch"] == (1, 2, 4)
    assert found["prompt_tokens"][2] == manifest.prompt.max_length
    assert found["sequence"][0] == 1 + manifest.prompt.drop


def test_one_size_and_three(manifest: Manifest) -> None:
    assert sizes(manifest, shapes="256x128")["tokens"] == (128, 128, 128)
    found = sizes(manifest, shapes="128x128/128x256/256x256")
    assert (found["tokens"], found["height"]) == ((64, 128, 256), (128, 256, 256))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ("128", "expected MIN/OPT/MAX"),
        ("64x64/128x128", "expected MIN/OPT/MAX"),
        ("0x64", "both sides a multiple of 16"),
        ("60x64", "60x64, expected both sides a multiple of 16"),
        ("512x512", "which makes 1024 tokens, expected at most 576"),
        ("128x128/64x64/128x128", "expected growing sizes"),
        ("static", "needs a bundle of fixed sizes"),
    ],
)
def test_shapes_that_are_none(manifest: Manifest, shapes: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sizes(manifest, shapes=shapes)


def test_fixed_sizes_are_their_own_profile(manifest: Manifest) -> None:
    rules = replace(manifest.geometry, sizes=((256, 128), (128, 256)))
    assert sizes(manifest, rules)["tokens"] == (128, 128, 128)
    with pytest.raises(InputError, match="this bundle has fixed sizes, expected static"):
        sizes(manifest, rules, shapes="64x64")


def test_a_profile_names_its_shapes_or_says_what_it_cannot(manifest: Manifest) -> None:
    known = ranges(manifest.geometry, manifest.prompt, manifest.noise.shape[0])
    found = profile(manifest.graphs["transformer.vectors"].inputs, known)
    assert found["clean_latents"].opt == (1, 576, 384)
    assert found["noise"].max == (1, 576, 384)
    assert found["positions"].max == (576, 2)
    odd = {"image": TensorSpec("image", "float32", (1, "depth"))}
    with pytest.raises(InputError, match="dimension 'depth', expected one of batch, tokens"):
        profile(odd, known)
