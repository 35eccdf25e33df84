"""Stored vectors: recorded with one engine, compared with another."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from rism.runtime import ProviderError, Segmenter
from rism.runtime.bundle.reader import Bundle
from rism.runtime.diagnostics import selftest
from rism.runtime.diagnostics.selftest import Comparison, check, check_variant, onnx_loads, record
from rism.runtime.engines.base import Arrays
from rism.runtime.engines.onnxruntime import OrtEngine
from rism.runtime.engines.selection import EngineRequest
from rism.runtime.errors import BundleError, InputError
from tests.conftest import Reseal
from tests.runtime.engines.profiles import ALL, transformer

Build = Callable[..., Path]


def compare(folder: Path, **options: Any) -> list[Comparison]:
    bundle = Bundle.open(folder)
    loads = options.pop("loads", None) or onnx_loads(bundle, "cpu", EngineRequest(threads=1))
    return check(bundle, loads, **{"precision": "float32", **options})


@pytest.fixture
def recorded(tiny_bundle: Path) -> Path:
    record(tiny_bundle)
    return tiny_bundle


def test_what_is_recorded(recorded: Path) -> None:
    bundle = Bundle.open(recorded)
    test = bundle.manifest.self_test
    assert test is not None
    assert test.made_by.startswith("onnxruntime-cpu 1.")
    assert set(test.graphs) == set(bundle.manifest.graphs)
    vectors = test.graphs["transformer.scores"]
    assert vectors.inputs["clean_latents"].shape == (1, 256, 3)
    assert vectors.inputs["tau"].shape == (1,)
    assert set(vectors.outputs) == {
        "scores", "coarse_attention", "refined_attention", "separability",
    }  # fmt: skip
    assert bundle.file(test.file).stat().st_size < 2**20
    # A picture with something in it: both sides of the mask are there.
    raw = bundle.file(test.file).read_bytes()
    each = vectors.outputs["scores"]
    scores = np.frombuffer(raw, "<f4", count=256, offset=each.offset)
    assert 0.05 < (scores > 0).mean() < 0.95


def test_small_where_pictures_stay_small(tiny_bundle: Path, reseal: Reseal) -> None:
    record(reseal(tiny_bundle, lambda d: d["geometry"].update(resize="shrink", size_level=136)))
    test = Bundle.open(tiny_bundle).manifest.self_test
    assert test is not None
    assert test.graphs["vae_encoder"].inputs["image"].shape == (1, 3, 128, 128)


def test_huge_outputs_are_not_kept(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "MAX_OUTPUT_BYTES", 2**16)
    record(tiny_bundle)
    found = [each.output for each in compare(tiny_bundle) if each.graph == "transformer.matrices"]
    assert found == ["attention_vectors", "features", "token_attention"]


def test_it_is_the_same_each_time(recorded: Path) -> None:
    before = (recorded / "selftest.bin").read_bytes()
    record(recorded, EngineRequest(provider="cpu", threads=1))
    assert (recorded / "selftest.bin").read_bytes() == before


def test_the_same_engine_agrees(recorded: Path) -> None:
    found = compare(recorded)
    assert all(each.passed for each in found)
    assert max(each.error for each in found) < 1e-6
    masks = [each.graph for each in found if each.output == "mask"]
    assert masks == ["transformer.vectors", "transformer.matrices", "transformer.scores"]
    outputs = [each.output for each in found if each.graph == "transformer.vectors"]
    assert outputs == [
        "attention_vectors", "propagated_vectors", "features", "token_attention", "mask",
    ]  # fmt: skip


def test_fixed_sizes(static_bundle: Path) -> None:
    record(static_bundle)
    graphs = {each.graph for each in compare(static_bundle)}
    assert graphs == {
        "text_encoder", "vae_encoder@128x128", "transformer.vectors@128x128",
        "transformer.matrices@128x128", "transformer.scores@128x128",
    }  # fmt: skip


def test_a_wrong_kernel_is_found(recorded: Path) -> None:
    """Attention that forgets its scale: the graph still runs, and is wrong."""
    bundle = Bundle.open(recorded)
    model = onnx.load(recorded / "transformer.vectors.onnx")
    (two,) = [i for i in model.graph.initializer if i.name == "two"]
    two.CopyFrom(numpy_helper.from_array(np.float32(2.5), "two"))
    other = recorded.parent / "other.onnx"
    onnx.save(model, other)
    spec = bundle.manifest.graphs["transformer.vectors"]
    loads = {"transformer.vectors": lambda: OrtEngine(other, spec)}
    for precision in ("float32", "float16", "bfloat16"):
        found = compare(recorded, loads=loads, precision=precision)
        assert not next(e for e in found if e.output == "attention_vectors").passed, precision


class _Changed:
    """An engine that returns something else than the bundle's."""

    provider = "changed"

    def __init__(self, folder: Path, change: Callable[[Arrays], None]) -> None:
        loads = onnx_loads(Bundle.open(folder), "cpu", EngineRequest(threads=1))
        self._change, self._real = change, loads["transformer.vectors"]()

    def run(self, feeds: Any) -> Arrays:
        outputs = self._real.run(feeds)
        self._change(outputs)
        return outputs


@pytest.mark.parametrize(
    ("change", "passes"),
    [
        (lambda _: None, True),
        (lambda out: out.update(features=out["features"] * np.float32(1.001)), True),
        (lambda out: out.update(features=out["features"] * np.float32(1.01)), False),
        (lambda out: out["features"].__setitem__((0, 0, 0), np.nan), False),
        (lambda out: out["features"].__setitem__((0, 0, 0), np.inf), False),
        (lambda out: out.update(features=out["features"][:, :-1]), False),
    ],
)
def test_what_passes(recorded: Path, change: Callable[[Arrays], None], passes: bool) -> None:
    engine = _Changed(recorded, change)
    found = compare(recorded, loads={"transformer.vectors": lambda: engine})
    features = next(each for each in found if each.output == "features")
    assert features.passed is passes
    # A coarser precision is allowed more, but never what is not finite.
    coarse = compare(recorded, loads={"transformer.vectors": lambda: engine}, precision="bfloat16")
    shape_or_nan = not np.isfinite(features.error)
    assert next(e for e in coarse if e.output == "features").passed is not shape_or_nan


def test_the_masks_are_compared(recorded: Path) -> None:
    engine = _Changed(recorded, lambda out: out.update(features=-out["features"][:, ::-1]))
    found = compare(recorded, loads={"transformer.vectors": lambda: engine})
    assert not next(each for each in found if each.output == "mask").passed


def test_without_vectors(tiny_master: Path) -> None:
    with pytest.raises(BundleError) as error:
        compare(tiny_master)
    assert str(error.value) == (
        f"bundle '{tiny_master}' has no test vectors: rism doctor {tiny_master} --record"
    )


def test_what_is_not_finite_is_no_reference(tiny_bundle: Path, reseal: Reseal) -> None:
    weights = tiny_bundle / "text_encoder.weights"
    weights.write_bytes(np.full_like(np.fromfile(weights, np.float32), np.nan).tobytes())
    before = (reseal(tiny_bundle) / "manifest.json").read_bytes()
    with pytest.raises(ProviderError, match=r"'text_encoder' returned 'prompt_embeds' with NaN"):
        record(tiny_bundle)
    assert (tiny_bundle / "manifest.json").read_bytes() == before
    assert not (tiny_bundle / "selftest.bin").exists()


def test_recording_leaves_the_bundle_as_it_was_but_for_the_vectors(tiny_bundle: Path) -> None:
    before = json.loads((tiny_bundle / "manifest.json").read_text())
    record(tiny_bundle)
    after = json.loads((tiny_bundle / "manifest.json").read_text())
    after.pop("self_test")
    after["files"].pop("selftest.bin")
    assert after == before
    assert Segmenter.from_bundle(tiny_bundle, provider="cpu").manifest.self_test is not None


class TestVariants:
    def test_a_variant_is_checked(self, built: Build) -> None:
        folder = built({**ALL, "transformer.vectors": transformer(1, (1, 9, 300))})
        record(folder)
        found = check_variant(Bundle.open(folder), "rtx-fp16")
        assert {each.graph for each in found} == set(ALL)
        assert all(each.passed and each.limit >= 0.03 for each in found)
        with pytest.raises(InputError, match="engine is 'b', this bundle has rtx-fp16"):
            check_variant(Bundle.open(folder), "b")

    def test_a_variant_makes_vectors(self, built: Build) -> None:
        modes = ("vectors", "matrices", "scores")
        folder = built({f"transformer.{mode}": transformer() for mode in modes})
        made_by = record(folder, EngineRequest(provider="tensorrt-rtx+onnxruntime-cpu"))
        assert made_by == "tensorrt-rtx (engine 'rtx-fp16')"
        assert all(each.passed for each in compare(folder))

    def test_a_profile_without_the_stored_shapes(self, built: Build) -> None:
        folder = built({"transformer.vectors": transformer(1, (1, 9, 100))})
        record(folder)
        with pytest.raises(InputError, match=r"of shape \[1, 256, 3\], engine 'rtx-fp16' of"):
            check_variant(Bundle.open(folder), "rtx-fp16")
