"""The kernels against NumPy: emulated on the CPU everywhere, and on a GPU where there is one."""

from __future__ import annotations

import ctypes
import mmap
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rism.runtime.engines.cuda_device import open_device
from rism.runtime.errors import BundleError, ProviderError
from rism.runtime.expression.spatial_words import Cues
from rism.runtime.image.geometry import Plan
from rism.runtime.method.equations import segment_tokens
from rism.runtime.method.postprocess import ExpressionOutput, PostprocessRequest, postprocess_numpy
from rism.runtime.method.postprocess_cuda import (
    MAP_THREADS,
    CudaPostprocess,
    kernel_macros,
    kernel_source,
)
from rism.runtime.method.upsampling import upsample
from tests.runtime.engines.fake_tensorrt import HostDevice
from tests.runtime.method.cuda.emulator import emulated

GRID_HW, L, B = (9, 13), 3, 3
N = GRID_HW[0] * GRID_HW[1]
STRETCHED = Plan((301, 67), (13 * 8, 9 * 8), (0, 0, 13 * 8, 9 * 8), GRID_HW)
CROPPED = Plan((120, 93), (109, 85), (3, 6, 3 + 13 * 8, 6 + 9 * 8), GRID_HW)
WANTED = PostprocessRequest("vectors", B, B, STRETCHED, 0.6, "equation")
Arrays = dict[str, np.ndarray]


class GuardedDevice(HostDevice):
    """Has around its arrays what no kernel may write to, and nobody can use: it is not a number."""

    guard = 256

    def __init__(self) -> None:
        super().__init__()
        self._guarded: list[np.ndarray] = []

    def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = np.full(size + 2 * self.guard, 0xFF, np.uint8)
        self._guarded.append(memory)
        return memory[self.guard : self.guard + size].view(dtype).reshape(shape)

    def scratch(self, nbytes: int) -> np.ndarray:
        return self.empty((nbytes,), "uint8")

    def intact(self) -> bool:
        return all(
            (each[: self.guard] == 0xFF).all() and (each[-self.guard :] == 0xFF).all()
            for each in self._guarded
        )


class FencedDevice(HostDevice):
    """Has after each of its arrays a page that cannot be read: who tries is killed."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        page, size = mmap.PAGESIZE, int(np.prod(shape)) * np.dtype(dtype).itemsize
        end = -(-size // page) * page
        memory = mmap.mmap(-1, end + page)
        begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(begin + end), ctypes.c_size_t(page), 0) == 0
        start = (end - size) // 4 * 4  # floats lie on words
        return np.frombuffer(memory, np.uint8, size, start).view(dtype).reshape(shape)

    def scratch(self, nbytes: int) -> np.ndarray:
        return self.empty((nbytes,), "uint8")


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


def answers(device: Any, outputs: Arrays, wanted: PostprocessRequest) -> list[ExpressionOutput]:
    """Bring outputs to the device and have the kernels answer; without NumPy's warnings."""
    there = {}
    for name, each in outputs.items():
        there[name] = device.empty(each.shape, each.dtype.name)
        device.copy(each, into=there[name])
    found = CudaPostprocess(device).answers(there, wanted)
    assert not isinstance(device, GuardedDevice) or device.intact()
    return found


def expect_same(
    found: ExpressionOutput, true: ExpressionOutput, wanted: PostprocessRequest
) -> None:
    """Maps to the last bit where sums have an order; masks but where scores are all but zero."""
    exact = wanted.capture != "matrices"
    for name in ("coarse", "refined"):
        ours, numpys = getattr(found.found, name), getattr(true.found, name)
        np.testing.assert_allclose(ours, numpys, rtol=0, atol=0 if exact else 2e-6)
    np.testing.assert_allclose(found.found.scores, true.found.scores, rtol=0, atol=1e-6)
    assert found.found.separability == pytest.approx(true.found.separability, rel=1e-4)
    assert found.found.reason == true.found.reason
    own_hw = upsample(found.found.scores.reshape(GRID_HW), wanted.plan)
    np.testing.assert_array_equal(found.mask_hw, own_hw > 0)
    near = np.abs(upsample(true.found.scores.reshape(GRID_HW), wanted.plan)) < 1e-6
    np.testing.assert_array_equal(found.mask_hw | near, true.mask_hw | near)
    assert (found.mask_hw.dtype, found.found.scores.dtype) == (np.bool_, np.float32)
    assert found.empty == true.empty


@pytest.mark.parametrize(
    ("channels", "changes"),
    [
        (24, {}),
        (24, {"plan": CROPPED, "prototype": "cosine"}),
        (24, {"capture": "matrices", "plan": CROPPED}),
        (24, {"capture": "scores"}),
        (24, {"capture": "scores", "count": 2}),
        (24, {"count": 2}),  # the last one fills up a fixed batch
        (300, {"prototype": "cosine"}),
        (2100, {"tau": 0.3}),
    ],
)
def test_answers_are_those_of_numpy(device: Any, channels: int, changes: dict[str, Any]) -> None:
    wanted = replace(WANTED, **changes)
    outputs = scenes(wanted.capture, channels=channels)
    expected = postprocess_numpy(outputs, wanted)
    found = answers(device, outputs, wanted)
    assert len(found) == wanted.count
    for ours, numpys in zip(found, expected, strict=True):
        expect_same(ours, numpys, wanted)
        assert 0 < ours.mask_hw.mean() < 1


SAID = (Cues(across=1), Cues(), Cues(down=-1, size=-1))


def guide(plan: Plan) -> np.ndarray:
    """A picture of patches, of the plan's size."""
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
def test_words_and_contours_are_those_of_numpy(
    device: Any, capture: str, changes: dict[str, Any]
) -> None:
    wanted = replace(WANTED, capture=capture, cues=SAID, **changes)
    outputs = scenes(capture, channels=5)
    expected, found = postprocess_numpy(outputs, wanted), answers(device, outputs, wanted)
    plain = postprocess_numpy(outputs, replace(WANTED, capture=capture, plan=wanted.plan))
    assert len(found) == wanted.count
    differ = 0
    for ours, numpys, published in zip(found, expected, plain, strict=False):
        atol = 2e-6 if capture == "matrices" else 0
        for name in ("coarse", "refined"):
            own, true = (getattr(each.found, name) for each in (ours, numpys))
            np.testing.assert_allclose(own, true, rtol=0, atol=atol)
            # What is weighed is not what is told.
            np.testing.assert_array_equal(true, getattr(published.found, name))
        np.testing.assert_allclose(ours.found.scores, numpys.found.scores, rtol=0, atol=1e-6)
        for name in ("separability", "concentration", "agreement"):
            own, true = (getattr(each.evidence, name) for each in (ours, numpys))
            assert own == pytest.approx(true, rel=1e-4, abs=1e-5)
        np.testing.assert_array_equal(ours.mask_hw, wanted.mask(ours.found.scores))
        assert (ours.mask_hw != numpys.mask_hw).mean() < 1e-3
        assert ours.empty == numpys.empty == (not numpys.mask_hw.any())
        differ += (ours.mask_hw != published.mask_hw).any()
    # The prior does not reach a graph that has the threshold inside.
    assert differ or (capture == "scores" and set(changes) == {"spatial_prior"})


def test_what_the_host_does_counts_as_the_masks_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A segmenter gives to the transformer what nobody else took."""
    device, outputs = GuardedDevice(), scenes()
    monkeypatch.setattr(device, "elapsed_ms", lambda *_: 0.0)
    guided = answers(device, outputs, replace(WANTED, guide=guide(STRETCHED)))
    published = answers(device, outputs, WANTED)
    assert all(each.mask_ms > 0 for each in guided)
    assert {each.mask_ms for each in published} == {0.0}


@pytest.mark.parametrize(
    ("name", "value"), [("propagated_vectors", np.nan), ("propagated_vectors", 0.37)]
)
def test_a_prior_does_not_hide_a_reason(device: Any, name: str, value: float) -> None:
    said = (Cues(across=1),) * B
    wanted = replace(WANTED, cues=said, spatial_prior=True, instances=True, guide=guide(STRETCHED))
    outputs = _broken(name, value)
    expected, found = postprocess_numpy(outputs, wanted), answers(device, outputs, wanted)
    assert found[1].found.reason is not None and not found[1].mask_hw.any()
    assert not found[1].found.scores.any() and not found[1].found.refined.any()
    for ours, numpys in zip(found, expected, strict=True):
        assert ours.found.reason == numpys.found.reason
        np.testing.assert_array_equal(ours.found.refined, numpys.found.refined)
        np.testing.assert_allclose(ours.found.scores, numpys.found.scores, rtol=0, atol=1e-6)


def _broken(name: str, value: Any) -> Arrays:
    """Outputs of which the second expression's are spoilt."""
    outputs = scenes()
    if name == "propagated_vectors" and np.isfinite(value):
        outputs[name][1] = value
    else:
        outputs[name][1].flat[7] = value
    return outputs


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
        ("features", 3e38, None),  # its square is infinite: nobody's, in NumPy as well
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_reasons_are_those_of_numpy(
    device: Any, name: str, value: float, reason: str | None
) -> None:
    outputs = _broken(name, value)
    expected = postprocess_numpy(outputs, WANTED)
    found = answers(device, outputs, WANTED)
    assert [each.found.reason for each in found] == [None, reason, None]
    for ours, numpys in zip(found, expected, strict=True):
        expect_same(ours, numpys, WANTED)
    if reason is not None:
        assert not found[1].found.scores.any() and not found[1].mask_hw.any() and found[1].empty
        assert found[1].found.separability == 0.0


@pytest.mark.parametrize("spoilt", ["refined_attention", "scores"])
def test_reasons_of_graphs_with_the_method_inside(device: Any, spoilt: str) -> None:
    outputs = scenes("scores")
    outputs[spoilt][2, 5] = np.nan
    wanted = replace(WANTED, capture="scores")
    expected, found = postprocess_numpy(outputs, wanted), answers(device, outputs, wanted)
    assert found[2].found.reason is not None
    for ours, numpys in zip(found, expected, strict=True):
        expect_same(ours, numpys, wanted)


def test_rounding_noise_is_constant(device: Any) -> None:
    outputs = scenes()
    noise = np.random.default_rng(0).uniform(0, 2e-7, (B, L, N))
    outputs["propagated_vectors"] = (0.4 + noise).astype(np.float32)
    for each in answers(device, outputs, WANTED):
        assert each.found.reason == "the attention map is constant"


def test_a_zero_feature_vector_is_nobodys(device: Any) -> None:
    outputs = scenes()
    outputs["features"][:, 4] = 0
    expected = postprocess_numpy(outputs, WANTED)
    for ours, numpys in zip(answers(device, outputs, WANTED), expected, strict=True):
        assert ours.found.scores[4] == 0
        expect_same(ours, numpys, WANTED)


def test_features_that_tell_nothing_apart(device: Any) -> None:
    """Scores of exactly zero: one class has no tokens, and nothing is in the mask."""
    outputs = scenes()
    outputs["features"][...] = np.eye(24, dtype=np.float32)[0]
    expected = postprocess_numpy(outputs, WANTED)
    for ours, numpys in zip(answers(device, outputs, WANTED), expected, strict=True):
        expect_same(ours, numpys, WANTED)
        assert ours.empty and ours.found.reason is None and ours.found.separability == 0.0


def test_token_attention_comes_along(device: Any) -> None:
    outputs = scenes()
    outputs["token_attention"] = np.random.default_rng(1).uniform(0, 1, (B, N, 5)).astype("float32")
    wanted = replace(WANTED, count=2)
    for row, each in enumerate(answers(device, outputs, wanted)):
        np.testing.assert_array_equal(each.token_attention, outputs["token_attention"][row])


def test_half_precision_outputs_are_widened(device: Any) -> None:
    outputs = {name: each.astype(np.float16) for name, each in scenes().items()}
    expected = postprocess_numpy(outputs, WANTED)
    for ours, numpys in zip(answers(device, outputs, WANTED), expected, strict=True):
        expect_same(ours, numpys, WANTED)


def test_results_outlive_the_next_run(device: Any) -> None:
    first = answers(device, scenes(), WANTED)[0]
    mask, scores = first.mask_hw.copy(), first.found.scores.copy()
    answers(device, scenes(seed=1), WANTED)
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
        CudaPostprocess(device).answers(outputs, WANTED)
    assert not device.compiled


def test_too_little_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    device = GuardedDevice()

    def fail(nbytes: int) -> None:
        raise MemoryError(f"Out of memory allocating {nbytes:,} bytes\n(allocated so far: 7)")

    monkeypatch.setattr(device, "scratch", fail)
    with pytest.raises(ProviderError, match=r"too little memory on GPU 0 \(Out .*: use fewer expr"):
        CudaPostprocess(device).answers(scenes(), WANTED)


@pytest.mark.parametrize(
    ("changes", "last"),
    [
        ({}, "mask_pixels"),
        ({"cues": (Cues(),) * B, "instances": True}, "mask_pixels"),
        ({"cues": SAID, "instances": True}, "separabilities"),
        ({"guide": guide(STRETCHED)}, "separabilities"),
    ],
    ids=["published", "no words", "words", "contours"],
)
def test_six_launches_however_many_expressions(changes: dict[str, Any], last: str) -> None:
    """And no mask that the host is to make: it is neither drawn nor brought over."""
    device, outputs = GuardedDevice(), scenes()
    for count in (1, B):
        answers(device, outputs, replace(WANTED, count=count, **changes))
        assert device.compiled[-1].launched == [
            "attention_maps",
            "sums_by_region",
            "class_means",
            "scores_and_sums",
            "class_means",
            last,
        ]
        width, height = STRETCHED.size_wh
        mask = height * width if last == "mask_pixels" else 0
        assert device.downloaded.pop() == (count * (48 + 3 * 4 * N + mask),)


def test_nothing_is_read_past_the_end_of_an_array() -> None:
    """In a process of its own, which would not come back."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    root = Path(__file__).parents[3]
    code = "from tests.runtime.method.test_postprocess_cuda import *; read_fenced_arrays()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "5 captures\n"), done.stderr[-2000:]


def read_fenced_arrays() -> None:
    """For the test above: all kernels, on sizes that no block of threads divides."""
    cases = [("matrices", 1), ("scores", 3), ("vectors", 1), ("vectors", 3), ("vectors", 2)]
    for capture, count in cases:
        wanted = replace(WANTED, capture=capture, count=count, batch=count, plan=CROPPED)
        wanted = replace(wanted, guide=guide(CROPPED) if count == 2 else None)
        outputs = {name: each[:count] for name, each in scenes(capture).items()}
        answers(FencedDevice(), outputs, wanted)
    print(len(cases), "captures")


@pytest.mark.parametrize("capture", ["vectors", "matrices"])
def test_the_order_of_threads_does_not_matter(capture: str) -> None:
    """What depends on it is a race."""
    upwards, downwards = GuardedDevice(), GuardedDevice()
    kernels = downwards.kernels
    downwards.kernels = lambda *given: _reversed(kernels(*given))  # type: ignore[method-assign]
    wanted = replace(WANTED, capture=capture, plan=CROPPED)
    first, second = (answers(each, scenes(capture), wanted) for each in (upwards, downwards))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.found.scores, other.found.scores)
        np.testing.assert_array_equal(one.found.refined, other.found.refined)
        np.testing.assert_array_equal(one.mask_hw, other.mask_hw)
        assert one.found.separability == other.found.separability


def _reversed(kernels: Any) -> Any:
    kernels.downwards = True
    return kernels


def test_a_missing_barrier_is_seen() -> None:
    """The emulator's own test: without the barrier in `combine` the order of threads matters."""
    source = kernel_source()
    broken = source.replace("    __syncthreads();\n#pragma unroll", "#pragma unroll", 1)
    assert broken != source
    vectors = scenes()["attention_vectors"]
    found = []
    for downwards in (False, True):
        kernels = emulated(broken, kernel_macros(24))
        kernels.downwards = downwards
        maps, said = np.zeros((B, 3, N), np.float32), np.zeros((B, 12), np.int32)
        arguments = (vectors, vectors, maps, said, np.int32(L), np.int32(N))
        kernels.launch("attention_maps", (2, B, 1), MAP_THREADS, arguments)
        found.append(maps)
    assert (found[0] != found[1]).any()


def test_a_barrier_that_some_do_not_reach_is_seen() -> None:
    source, combine = kernel_source(), "combine<Least, MAP_THREADS>(ends);"
    broken = source.replace(combine, f"if (threadIdx.x > 40) {combine}")
    assert broken != source
    kernels = emulated(broken, kernel_macros(24))
    vectors = scenes()["attention_vectors"]
    maps, said = np.zeros((B, 3, N), np.float32), np.zeros((B, 12), np.int32)
    with pytest.raises(AssertionError, match="some threads of a block do not reach a barrier"):
        kernels.launch(
            "attention_maps",
            (2, B, 1),
            MAP_THREADS,
            (vectors, vectors, maps, said, np.int32(L), np.int32(N)),
        )
