"""The kernels against NumPy: emulated on the CPU everywhere, and on a GPU where there is one."""

import shutil
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rism.runtime.engines.cuda_device import open_device
from rism.runtime.errors import BundleError, ProviderError
from rism.runtime.expression.spatial_words import Cues
from rism.runtime.image.geometry import Plan
from rism.runtime.method.equations import segment_tokens
from rism.runtime.method.postprocess import ExpressionOutput, PostprocessRequest, postprocess_numpy
from rism.runtime.method.postprocess_cuda import CudaPostprocess
from rism.runtime.method.upsampling import upsample
from rism.runtime.options import ResolvedOptions
from tests.paths import ROOT
from tests.runtime.method.cuda.devices import FencedDevice, GuardedDevice

GRID_HW, L, B = (9, 13), 3, 3
N = GRID_HW[0] * GRID_HW[1]
STRETCHED = Plan((301, 67), (13 * 8, 9 * 8), (0, 0, 13 * 8, 9 * 8), GRID_HW)
CROPPED = Plan((120, 93), (109, 85), (3, 6, 3 + 13 * 8, 6 + 9 * 8), GRID_HW)
OPTIONS = ResolvedOptions(
    tau=0.6, prompt_weights=None, magnets="", sinks=False, prototype="equation",
    upsample="bilinear", spatial_prior=False, instances=False, confidence=None, always=True,
)  # fmt: skip
REQUEST = PostprocessRequest("vectors", B, STRETCHED, (Cues(),) * B, OPTIONS)
CUES = (Cues(across=1), Cues(), Cues(down=-1, size=-1))
Arrays = dict[str, np.ndarray]


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Any:
    """The CPU, and a GPU: what the kernels say has to be the same."""
    if request.param == "cuda":
        pytest.importorskip("cupy")
        return open_device(0)
    return GuardedDevice()


def scenes(capture: str = "vectors", *, channels: int = 24, seed: int = 0) -> Arrays:
    """Outputs of a graph: for each expression a blob in the attention that the features know."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(GRID_HW).reshape(2, -1)
    away = np.stack([np.hypot(y - 2 - 2 * b, x - 3 - 3 * b) for b in range(B)])
    blob = np.exp(-(away**2) / 12)
    attention = rng.uniform(0, 0.4, (B, L, N)) + blob[:, None] * np.arange(1, L + 1)[:, None]
    features = rng.standard_normal((B, N, channels)) * rng.uniform(0.1, 10, (B, N, 1))
    features += 8 * blob[..., None] * rng.standard_normal((B, 1, channels))
    outputs = {"attention_vectors": attention, "features": features}
    if capture == "matrices":
        matrices = rng.uniform(0, 1, (B, L, N, N)) + 9 * (blob[:, None] * blob[..., None])[:, None]
        outputs["transition_matrices"] = matrices / matrices.sum(-1, keepdims=True)
    else:
        outputs["propagated_vectors"] = attention + rng.uniform(0, 0.3, (B, L, N))
    outputs = {name: each.astype(np.float32) for name, each in outputs.items()}
    if capture != "scores":
        return outputs
    found = [segment_tokens(*[each[b] for each in _ordered(outputs)], tau=0.6) for b in range(B)]
    return {
        "scores": np.stack([each.scores for each in found]),
        "coarse_attention": np.stack([each.coarse for each in found]),
        "refined_attention": np.stack([each.refined for each in found]),
        "separability": np.array([each.separability for each in found], np.float32),
    }


def _ordered(outputs: Arrays) -> list[np.ndarray]:
    return [outputs[k] for k in ("attention_vectors", "propagated_vectors", "features")]


def request(count: int = B, **changes: Any) -> PostprocessRequest:
    """The request above with other options, or other fields."""
    fields = {"capture", "batch", "plan", "cues", "guide"}
    options = {name: value for name, value in changes.items() if name not in fields}
    own = {name: value for name, value in changes.items() if name in fields}
    changed = replace(REQUEST, options=replace(OPTIONS, **options), **own)
    return replace(changed, cues=changed.cues[:count])


def run(device: Any, outputs: Arrays, asked: PostprocessRequest) -> list[ExpressionOutput]:
    """Copy outputs to the device and run the kernels; nothing outside of its arrays is written."""
    copies = {}
    for name, each in outputs.items():
        copies[name] = device.empty(each.shape, each.dtype.name)
        device.copy(each, into=copies[name])
    found = CudaPostprocess(device).queue(copies, asked)()
    assert not isinstance(device, GuardedDevice) or device.intact()
    return found


def run_both(
    device: Any, outputs: Arrays, asked: PostprocessRequest = REQUEST
) -> list[tuple[ExpressionOutput, ExpressionOutput]]:
    """Outputs of the kernels and of NumPy, checked to be the same, for each expression.

    Maps are equal to the last bit where sums have an order; masks but where scores are all but
    zero.
    """
    pairs = list(zip(run(device, outputs, asked), postprocess_numpy(outputs, asked), strict=True))
    exact = asked.capture != "matrices"
    for found, true in pairs:
        for name in ("coarse", "refined"):
            ours, numpys = getattr(found.found, name), getattr(true.found, name)
            np.testing.assert_allclose(ours, numpys, rtol=0, atol=0 if exact else 2e-6)
        np.testing.assert_allclose(found.found.scores, true.found.scores, rtol=0, atol=1e-6)
        for name in ("separability", "concentration", "agreement"):
            ours, numpys = getattr(found.evidence, name), getattr(true.evidence, name)
            assert ours == pytest.approx(numpys, rel=1e-4, abs=1e-5)
        assert found.found.reason == true.found.reason
        np.testing.assert_array_equal(found.mask_hw, asked.mask(found.found.scores))
        if asked.guide is None:
            near = np.abs(upsample(true.found.scores.reshape(GRID_HW), asked.plan)) < 1e-6
            np.testing.assert_array_equal(found.mask_hw | near, true.mask_hw | near)
        assert (found.mask_hw != true.mask_hw).mean() < 1e-3
        assert (found.mask_hw.dtype, found.found.scores.dtype) == (np.bool_, np.float32)
        assert found.empty == true.empty == (not true.mask_hw.any())
    return pairs


@pytest.mark.parametrize(
    ("channels", "changes"),
    [
        (24, {}),
        (24, {"plan": CROPPED, "prototype": "cosine"}),
        (24, {"capture": "matrices", "plan": CROPPED}),
        (24, {"capture": "scores"}),
        (24, {"capture": "scores", "count": 2}),
        (24, {"count": 2}),  # the last one fills up a fixed batch
        (2100, {"tau": 0.3, "prototype": "cosine"}),
    ],
)
def test_outputs_equal_numpys(device: Any, channels: int, changes: dict[str, Any]) -> None:
    asked = request(**changes)
    pairs = run_both(device, scenes(asked.capture, channels=channels), asked)
    assert len(pairs) == asked.count
    assert all(0 < found.mask_hw.mean() < 1 for found, _ in pairs)


def guide(plan: Plan) -> np.ndarray:
    """An image of patches, of the plan's size."""
    rng, (width, height) = np.random.default_rng(3), plan.size_wh
    patches = rng.integers(0, 256, (height // 10 + 1, width // 10 + 1, 3), np.uint8)
    return patches.repeat(10, axis=0).repeat(10, axis=1)[:height, :width]


@pytest.mark.parametrize("capture", ["vectors", "matrices", "scores"])
@pytest.mark.parametrize(
    "changes",
    [
        {"spatial_prior": True},
        {"instances": True},
        {"spatial_prior": True, "instances": True, "plan": CROPPED, "prototype": "cosine"},
        {"guide": guide(STRETCHED)},
        {"spatial_prior": True, "instances": True, "guide": guide(CROPPED), "plan": CROPPED,
         "count": 2},
    ],
    ids=["prior", "instances", "both", "guide", "all"],
)  # fmt: skip
def test_words_and_contours_equal_numpys(
    device: Any, capture: str, changes: dict[str, Any]
) -> None:
    asked, outputs = request(capture=capture, cues=CUES, **changes), scenes(capture, channels=5)
    pairs = run_both(device, outputs, asked)
    plain = postprocess_numpy(outputs, request(capture=capture, plan=asked.plan))
    assert len(pairs) == asked.count
    for (_, numpys), published in zip(pairs, plain, strict=False):
        # The published maps are returned, not the weighted ones.
        for name in ("coarse", "refined"):
            own, true = (getattr(each.found, name) for each in (numpys, published))
            np.testing.assert_array_equal(own, true)
    differ = any((a.mask_hw != b.mask_hw).any() for (a, _), b in zip(pairs, plain, strict=False))
    # The prior does not reach a graph that contains the threshold.
    assert differ or (capture == "scores" and set(changes) == {"spatial_prior"})


def test_work_on_the_host_counts_as_the_masks_time(monkeypatch: pytest.MonkeyPatch) -> None:
    device, outputs = GuardedDevice(), scenes()
    monkeypatch.setattr(device, "elapsed_ms", lambda *_: 0.0)
    guided = run(device, outputs, request(guide=guide(STRETCHED)))
    published = run(device, outputs, REQUEST)
    assert all(each.mask_ms > 0 for each in guided)
    assert {each.mask_ms for each in published} == {0.0}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("propagated_vectors", np.nan, "the attention map is not finite"),
        ("propagated_vectors", -np.inf, "the attention map is not finite"),
        ("propagated_vectors", 0.0, "the attention map is constant"),
        ("propagated_vectors", 0.37, "the attention map is constant"),
        ("attention_vectors", np.nan, None),
        ("features", np.nan, "the features are not finite"),
        ("features", np.inf, "the features are not finite"),
        ("features", 3e38, None),  # its square is infinite: of no class, in NumPy as well
        ("refined_attention", np.nan, "the attention map is not finite"),
        ("scores", np.nan, "the features are not finite"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_reasons_equal_numpys(device: Any, name: str, value: float, reason: str | None) -> None:
    """One expression's outputs are spoilt: the others' results are not."""
    capture = "scores" if name in ("refined_attention", "scores") else "vectors"
    outputs = scenes(capture)
    if name == "propagated_vectors" and np.isfinite(value):
        outputs[name][1] = value
    else:
        outputs[name][1].flat[7] = value
    choices = {"spatial_prior": capture == "vectors", "instances": True, "cues": (CUES[0],) * B}
    for changes in ({}, choices | {"guide": guide(STRETCHED)}):
        pairs = run_both(device, outputs, request(capture=capture, **changes))
        assert [found.found.reason for found, _ in pairs] == [None, reason, None]
        spoilt = pairs[1][0]
        if reason is not None:
            assert not spoilt.found.scores.any() and not spoilt.mask_hw.any() and spoilt.empty
            assert spoilt.found.separability == 0.0


def test_odd_outputs(device: Any) -> None:
    outputs = scenes()
    outputs["features"][:, 4] = 0
    for found, _ in run_both(device, outputs):
        assert found.found.scores[4] == 0  # a zero vector is of no class
    noise = np.random.default_rng(0).uniform(0, 2e-7, (B, L, N))
    outputs["propagated_vectors"] = (0.4 + noise).astype(np.float32)
    for found, _ in run_both(device, outputs):
        assert found.found.reason == "the attention map is constant"  # rounding is no signal
    outputs = scenes()
    outputs["features"][...] = np.eye(24, dtype=np.float32)[0]
    for found, _ in run_both(device, outputs):  # scores of zero: one class has no tokens
        assert found.empty and found.found.reason is None and found.found.separability == 0.0
    run_both(device, {name: each.astype(np.float16) for name, each in scenes().items()})


def test_token_attention_is_returned(device: Any) -> None:
    outputs = scenes()
    outputs["token_attention"] = np.random.default_rng(1).uniform(0, 1, (B, N, 5)).astype("float32")
    for row, each in enumerate(run(device, outputs, request(count=2))):
        np.testing.assert_array_equal(each.token_attention, outputs["token_attention"][row])


def test_results_outlive_the_next_run(device: Any) -> None:
    first = run(device, scenes(), REQUEST)[0]
    mask, scores = first.mask_hw.copy(), first.found.scores.copy()
    run(device, scenes(seed=1), REQUEST)
    np.testing.assert_array_equal(first.mask_hw, mask)
    np.testing.assert_array_equal(first.found.scores, scores)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("features", (B, N - 1, 24)),
        ("features", (B, N, 0)),
        ("features", (B, N)),
        ("attention_vectors", (B, 0, N)),
        ("attention_vectors", (B, N)),
        ("attention_vectors", (B, L, N - 1)),
        ("propagated_vectors", (B, L - 1, N)),
        ("propagated_vectors", (B - 1, L, N)),
    ],
)
def test_outputs_of_other_shapes_are_refused(name: str, shape: tuple[int, ...]) -> None:
    """Before a kernel reads past their end."""
    outputs = scenes() | {name: np.zeros(shape, np.float32)}
    device = GuardedDevice()
    with pytest.raises(BundleError, match=f"the graph returned '{name}' of shape"):
        CudaPostprocess(device).queue(outputs, REQUEST)
    assert not device.compiled


def test_too_little_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    device = GuardedDevice()

    def fail(nbytes: int) -> None:
        raise MemoryError(f"Out of memory allocating {nbytes:,} bytes\n(allocated so far: 7)")

    monkeypatch.setattr(device, "scratch", fail)
    with pytest.raises(ProviderError, match=r"too little memory on GPU 0 \(Out .*: use fewer expr"):
        CudaPostprocess(device).queue(scenes(), REQUEST)


@pytest.mark.parametrize(
    ("changes", "last"),
    [
        ({}, "mask_pixels"),
        ({"cues": (Cues(),) * B, "instances": True}, "mask_pixels"),
        ({"cues": CUES, "instances": True}, "separabilities"),
        ({"guide": guide(STRETCHED)}, "separabilities"),
    ],
    ids=["published", "no words", "words", "contours"],
)
def test_six_launches_however_many_expressions(changes: dict[str, Any], last: str) -> None:
    """A mask that the host makes is neither computed by the kernels nor copied."""
    device, outputs = GuardedDevice(), scenes()
    for count in (1, B):
        run(device, outputs, request(count, **changes))
        assert device.compiled[-1].launched == [
            "attention_maps", "sums_by_region", "class_means", "scores_and_sums", "class_means",
            last,
        ]  # fmt: skip
        width, height = STRETCHED.size_wh
        mask = height * width if last == "mask_pixels" else 0
        assert device.downloaded.pop() == (count * (48 + 3 * 4 * N + mask),)


def test_nothing_is_read_past_the_end_of_an_array() -> None:
    """In a process of its own, which would not come back."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    code = "from tests.runtime.method.test_postprocess_cuda import *; read_fenced_arrays()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "5 captures\n"), done.stderr[-2000:]


def read_fenced_arrays() -> None:
    """For the test above: all kernels, on sizes that no block of threads divides."""
    cases = [("matrices", 1), ("scores", 3), ("vectors", 1), ("vectors", 3), ("vectors", 2)]
    for capture, count in cases:
        own = guide(CROPPED) if count == 2 else None
        asked = request(count, capture=capture, batch=count, plan=CROPPED, guide=own)
        outputs = {name: each[:count] for name, each in scenes(capture).items()}
        run(FencedDevice(), outputs, asked)
    print(len(cases), "captures")


@pytest.mark.parametrize("capture", ["vectors", "matrices"])
def test_the_order_of_threads_does_not_matter(capture: str) -> None:
    """What depends on it is a race."""
    upwards, downwards = GuardedDevice(), GuardedDevice()
    kernels = downwards.kernels
    downwards.kernels = lambda *given: _reversed(kernels(*given))  # type: ignore[method-assign]
    asked = request(capture=capture, plan=CROPPED)
    first, second = (run(each, scenes(capture), asked) for each in (upwards, downwards))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.found.scores, other.found.scores)
        np.testing.assert_array_equal(one.found.refined, other.found.refined)
        np.testing.assert_array_equal(one.mask_hw, other.mask_hw)
        assert one.found.separability == other.found.separability


def _reversed(kernels: Any) -> Any:
    kernels.downwards = True
    return kernels
