"""Plans run in the maker's order of calls; the edge to its library is a recorded fake.

What the fake computes is the graph, on the memory that it is given, so results are compared
with onnxruntime's.
"""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rism.runtime import InputError, ProviderError, Segmenter
from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines import nvidia_driver, residency
from rism.runtime.engines.memory import GPU_BASE_BYTES, PartMemory
from rism.runtime.errors import BundleError, RismWarning
from rism.runtime.method import postprocess
from tests.conftest import Reseal
from tests.runtime.engines.fake_tensorrt import (
    CudaGraphStrategy,
    FakeEngine,
    FakeTensorRt,
    HostDevice,
    load_plan,
)
from tests.runtime.engines.profiles import ALL, FIXED, VAE, transformer


def test_masks_are_those_of_onnxruntime(built: Any, trt: FakeTensorRt, colours: np.ndarray) -> None:
    bundle = built()
    words = ["red", "the green", "blue", "the red", "the blue"]
    segmenter = Segmenter.from_bundle(bundle, provider="tensorrt-rtx")
    results = segmenter.segment(colours, words)
    expected = Segmenter.from_bundle(bundle, provider="onnxruntime-cpu").segment(colours, words)
    for found, true in zip(results, expected, strict=True):
        np.testing.assert_allclose(found.score_map, true.score_map, atol=1e-6)
        np.testing.assert_array_equal(found.mask, true.mask)
        assert (found.provider, found.precision) == ("tensorrt-rtx:0", "float16")
        assert (true.provider, true.precision) == ("cpu", "float32")
    assert segmenter.provider_reason == "asked for: engine 'rtx-fp16'"
    # Five expressions, but the profile has room for four at a time.
    assert trt.calls.count("execute_async_v3") == 1 + 2 + 2


@pytest.mark.parametrize("fixed", [False, True], ids=["any shape", "one shape"])
def test_nothing_visits_the_host_between_engines(
    built: Any, device: HostDevice, colours: np.ndarray, fixed: bool
) -> None:
    bundle = built({**ALL, "transformer.vectors": FIXED} if fixed else ALL)
    segmenter = Segmenter.from_bundle(bundle, provider="tensorrt-rtx")
    state = segmenter.set_image(colours)
    prompts, tokens = ["red", "green"], state.plan.tokens
    maps = 2 * (3 * 4 * tokens + 48)
    height, width = colours.shape[:2]
    for run, (choices, fetched, last) in enumerate(
        [
            ({}, maps, "separabilities"),  # contours are the host's
            ({"upsample": "bilinear"}, maps + 2 * height * width, "mask_pixels"),
            ({"paper": True}, maps + 2 * height * width, "mask_pixels"),
        ]
    ):
        del device.downloaded[:], device.uploaded[:]
        results = segmenter.segment(state, prompts, **choices)
        # What is asked for; this bundle has token attention, too.
        assert device.downloaded == [(fetched,), (2, tokens, 8)]
        assert device.compiled[-1].launched[-1] == last
        assert device.compiled[-1].launched.count("mask_pixels") == run
        # No latents and no embeddings: weights and positions, and at first what embeds the text
        # and the noise.
        first = [(2, 8), (2, 8), (300, 3)] if run == 0 else []
        assert device.uploaded == [*first, (2, 8), (tokens, 2)]
        assert all(each.timings_ms[stage] > 0 for each in results for stage in ("method", "mask"))


def test_the_host_has_what_it_asks_for(
    built: Any, device: HostDevice, colours: np.ndarray, tmp_path: Path
) -> None:
    """Of latents and of embeddings: the cache on disk, and another provider."""
    bundle = built()
    there = Segmenter.from_bundle(bundle, provider="tensorrt-rtx", cache_dir=tmp_path)
    here = Segmenter.from_bundle(bundle, provider="cpu")
    state, own = there.set_image(colours), here.set_image(colours)
    assert not device.downloaded
    np.testing.assert_allclose(state.clean_latents, own.clean_latents, atol=1e-6)
    assert state.clean_latents is not own.clean_latents
    assert device.downloaded == [state.clean_latents.shape]
    assert not state.clean_latents.flags.writeable
    first = here.segment(state, "red")  # a state of the GPU, on the CPU
    second = there.segment(own, "red")  # and the other way round
    np.testing.assert_array_equal(first.mask, second.mask)
    assert device.downloaded[1:2] == [(8, 3)]  # embeddings
    assert len(list(tmp_path.glob("*.npy"))) == 1
    again = Segmenter.from_bundle(bundle, provider="tensorrt-rtx", cache_dir=tmp_path)
    assert again.segment(state, ["red", "the blue"])[0].mask.any()  # one from disk, one made


def test_a_gpu_without_memory_for_what_stays_there(
    built: Any, device: HostDevice, colours: np.ndarray, monkeypatch: Any
) -> None:
    segmenter = Segmenter.from_bundle(built(), provider="tensorrt-rtx")
    state, empty = segmenter.set_image(colours), device.empty

    def full(shape: tuple[int, ...], dtype: str) -> np.ndarray:
        if shape == (300, 3):
            raise MemoryError("Out of memory allocating 3,600 bytes\n(allocated so far: 7)")
        return empty(shape, dtype)

    monkeypatch.setattr(device, "empty", full)
    with pytest.raises(ProviderError, match=r"GPU 0 has too little memory \(Out .*\): use fewer"):
        segmenter.segment(state, "red")
    monkeypatch.undo()
    assert segmenter.segment(state, "red").mask.any()


def test_the_device_is_free_while_the_host_finishes(
    built: Any, device: HostDevice, colours: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = Segmenter.from_bundle(built(), provider="tensorrt-rtx")
    free = []

    def take() -> bool:
        taken = device.lock.acquire(blocking=False)
        if taken:
            device.lock.release()
        return taken

    def others_can_queue() -> None:
        with ThreadPoolExecutor(1) as other:
            free.append(other.submit(take).result())

    waits, guided = device.elapsed_ms, postprocess.guided_upsample

    def elapsed_ms(first: float, last: float) -> float:
        others_can_queue()
        return waits(first, last)

    def guided_upsample(*given: Any) -> np.ndarray:
        others_can_queue()
        return guided(*given)

    monkeypatch.setattr(device, "elapsed_ms", elapsed_ms)
    monkeypatch.setattr(postprocess, "guided_upsample", guided_upsample)
    assert segmenter.segment(colours, "red").mask.any()
    # Latents, embeddings, the method, the mask, and its contour.
    assert free == [True] * 5


def test_borrowed_outputs_are_the_plans_own(
    built: Any, trt: FakeTensorRt, device: HostDevice
) -> None:
    bundle = built({"vae_encoder": {"image": [[1, 3, 16, 24]] * 3}})
    engine = load_plan(bundle, "vae_encoder", trt, device)
    feeds = [{"image": np.full((1, 3, 16, 24), value, np.float32)} for value in (0, 1, 0.5)]
    kept = engine.run_on_device(feeds[0])["clean_latents"]
    first = engine.run_on_device(feeds[1], borrow=True)["clean_latents"]
    value = first.copy()
    second = engine.run_on_device(feeds[2], borrow=True)["clean_latents"]
    assert np.shares_memory(first, second) and not np.shares_memory(first, kept)
    assert (value != second).any()
    np.testing.assert_array_equal(kept, engine.run(feeds[0])["clean_latents"])


def test_kernels_that_do_not_compile_are_known_at_the_start(
    built: Any, device: HostDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: str, macros: dict[str, int]) -> None:
        raise ProviderError("CuPy cannot compile the kernels")

    monkeypatch.setattr(device, "kernels", fail)
    bundle = built()
    with pytest.raises(ProviderError, match=r"compile the kernels"):
        Segmenter.from_bundle(bundle, provider="tensorrt-rtx")
    segmenter = Segmenter.from_bundle(bundle, provider="auto")
    assert segmenter.provider == "cpu"
    assert "did not start (CuPy cannot compile the kernels" in segmenter.provider_reason


def test_the_order_of_calls(built: Any, trt: FakeTensorRt, device: HostDevice) -> None:
    engine = load_plan(built(stripped=True), "vae_encoder", trt, device)
    assert trt.calls == [
        "Runtime", "deserialize_cuda_engine", "Refitter", "OnnxParserRefitter", "refit_from_file",
        "refit_cuda_engine", "create_execution_context",
    ]  # fmt: skip
    del trt.calls[:]
    outputs = engine.run_on_device({"image": np.zeros((1, 3, 16, 24), np.float64)})
    assert trt.calls == [
        "set_input_shape", "set_tensor_address", "infer_shapes", "set_tensor_address",
        "update_device_memory_size_for_shapes", "set_device_memory", "execute_async_v3",
    ]  # fmt: skip
    assert outputs["clean_latents"].shape == (1, 6, 3)
    assert not np.isnan(outputs["clean_latents"]).any()


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_a_plan_of_one_shape_is_replayed(
    built: Any, trt: FakeTensorRt, device: HostDevice, colours: np.ndarray, target: str
) -> None:
    """Bound once, captured at the second run; TensorRT for RTX captures by itself."""
    bundle = built({**ALL, "transformer.vectors": FIXED}, target=target)
    segmenter = Segmenter.from_bundle(bundle, provider=target)
    expected = Segmenter.from_bundle(bundle, provider="cpu")
    results = segmenter.segment(colours, ["red", "green", "blue"])
    again = segmenter.segment(colours, ["blue", "green"])
    for found in (*results, *again):
        true = expected.segment(colours, found.expression)
        np.testing.assert_allclose(found.score_map, true.score_map, atol=1e-6)
    own = target == "tensorrt"
    assert (device.captured, device.launched) == ((1, 2) if own else (0, 0))
    asked = [config.cuda_graph_strategy for config in trt.configs]
    assert asked.count(CudaGraphStrategy.WHOLE_GRAPH_CAPTURE) == (0 if own else 1)


def test_without_a_graph_a_plan_is_queued_each_time(
    built: Any, trt: FakeTensorRt, device: HostDevice
) -> None:
    bundle = built({"vae_encoder": {"image": [[1, 3, 16, 16]] * 3}}, target="tensorrt")
    engine = load_plan(bundle, "vae_encoder", trt, device)
    device.refuses_graphs = True
    with warnings.catch_warnings(record=True) as said:
        for value in (0.25, 0.5, 0.75):
            outputs = engine.run({"image": np.full((1, 3, 16, 16), value, np.float32)})
            np.testing.assert_allclose(outputs["clean_latents"], value)
    assert [str(each.message) for each in said] == [
        "engine 'rtx-fp16' of graph 'vae_encoder' runs without a CUDA graph, which may be slower: "
        "GPU 0 records no CUDA graph (not permitted)"
    ]
    assert said[0].category is RismWarning
    assert trt.calls.count("execute_async_v3") == 3


@pytest.mark.parametrize("fixed", [False, True])
def test_threads_take_turns(built: Any, trt: FakeTensorRt, device: HostDevice, fixed: bool) -> None:
    """A context serves one run at a time, and its arrays are its own until they are read."""
    sides = [[1, 3, 16, 16]] * 3 if fixed else VAE["image"]
    bundle = built({"vae_encoder": {"image": sides}}, target="tensorrt")
    engine = load_plan(bundle, "vae_encoder", trt, device)

    def run(value: int) -> bool:
        side = 16 if fixed else 8 * (1 + value % 5)
        found = engine.run({"image": np.full((1, 3, side, side), value, np.float32)})
        return found["clean_latents"].size > 0 and bool((found["clean_latents"] == value).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(60)))


def test_a_shape_outside_of_the_profile(built: Any, colours: np.ndarray) -> None:
    bundle = built({**ALL, "transformer.vectors": transformer(tokens=(1, 64, 100))})
    segmenter = Segmenter.from_bundle(bundle, provider="tensorrt-rtx")
    with pytest.raises(InputError) as error:
        segmenter.segment(colours, "red")
    assert str(error.value) == (
        "'clean_latents' is of shape [1, 240, 3], engine 'rtx-fp16' of graph "
        "'transformer.vectors' takes [1, 1, 3] to [4, 100, 3]: "
        f"rism build {bundle} --target tensorrt-rtx --gpu sm89 --precision fp16 "
        "--shapes with larger ones, or use --provider onnxruntime-cuda"
    )


def test_what_the_library_refuses(built: Any, trt: FakeTensorRt, colours: np.ndarray) -> None:
    bundle = built(stripped=True)
    for fails, says in {
        "create_execution_context": "gives no context on tensorrt-rtx:0 (Error Code 2: it hurts)",
        "refit_from_file": "does not take the bundle's weights on tensorrt-rtx:0 (Error",
        "refit_cuda_engine": "does not take the bundle's weights",
        "deserialize_cuda_engine": "TensorRT for RTX 1.7.1.116 cannot load engine 'rtx-fp16' of",
        "set_input_shape": "refuses '",
        "update_device_memory_size_for_shapes": "how much memory these shapes take on tensorrt",
        "set_tensor_address": "refuses the memory of",
        "execute_async_v3": "failed on tensorrt-rtx:0 (Error Code 2: it hurts): use fewer",
    }.items():
        trt.fails = {fails}
        with pytest.raises(ProviderError) as error:
            Segmenter.from_bundle(bundle, provider="tensorrt-rtx").segment(colours, "red")
        assert says in str(error.value)
        assert f"rism build {bundle} --target tensorrt-rtx --gpu sm89" in str(error.value)
        assert "\n" not in str(error.value)


# What TensorRT says of plans of elsewhere, which the checks before should have kept from it.
WORDS = {
    "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion "
    "stdVersionRead == kSERIALIZATION_VERSION failed.Version tag does not match. Note: Current "
    "Version: 237, Serialized Engine Version: 239)":
        "was built by another version than TensorRT 1.7.1.116 (IRuntime::deserializeCudaEngine",
    "The engine plan file is not compatible with this version of TensorRT, expecting library "
    "version 10.9.0 got 10.8.0, please rebuild.":
        "was built by another version than TensorRT 1.7.1.116 (The engine plan file is not",
    "Error Code 6: API Usage Error (The engine plan file is generated on an incompatible device, "
    "expecting compute 8.9 got compute 8.6, please rebuild.)":
        "was not built for this GPU (Error Code 6: API Usage Error (The engine plan file is",
    "Error Code 1: Serialization (Serialization assertion magicTagRead == kMAGIC_TAG failed.Magic "
    "tag does not match)":
        "is not a whole plan for TensorRT 1.7.1.116 (Error Code 1: Serialization (Serial",
    "The plan has been created with TensorRT-RTX version 1.6.0 and cannot be run here, the "
    "runtime is TensorRT-RTX version 1.7.1":
        "was built by another version than TensorRT 1.7.1.116 (The plan",
    "The plan supports compute capability 8.6, the current device has 8.9":
        "was not built for this GPU (The plan supports",
    "Error Code 35: CUDA driver version is insufficient for CUDA runtime version":
        "found no NVIDIA driver, or one that is too old",
}  # fmt: skip


def test_what_tensorrt_says_of_a_plan(built: Any, trt: FakeTensorRt) -> None:
    bundle = built(target="tensorrt")
    trt.fails = {"deserialize_cuda_engine"}
    for trt.says, message in WORDS.items():
        with pytest.raises((BundleError, ProviderError)) as error:
            Segmenter.from_bundle(bundle, provider="tensorrt")
        assert message in str(error.value)
        way = f"rism build {bundle} --target tensorrt --gpu sm89 --precision fp16"
        if "driver" in trt.says:
            way = "install or update it and see nvidia-smi, or use --provider onnxruntime-cpu"
        assert str(error.value).endswith(way)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        ("names", "has inputs image, expected picture by the manifest: rism build"),
        ("dtype", "has 'image' of float32, expected float16 by the manifest: rism build"),
        ("shape", "has 'image' of shape [1, 3, 'any', 'any'], expected [1, 4, 'h', 'w'] by"),
        ("profile", "takes 'image' of shapes [(1, 3, 8, 8), (1, 3, 8, 8), (1, 3, 8, 8)], expected"),
        ("memory", "wants 'image' in host memory, expected device memory by the manifest"),
    ],
)
def test_a_manifest_that_lies_about_a_plan(
    built: Any, trt: FakeTensorRt, device: HostDevice, reseal: Reseal, lie: str, says: str
) -> None:
    def change(data: dict[str, Any]) -> None:
        image = data["graphs"]["vae_encoder"]["inputs"]["image"]
        shapes = data["engines"][0]["graphs"]["vae_encoder"]["shapes"]["image"]
        if lie == "names":
            image["name"] = "picture"
        elif lie == "dtype":
            image["dtype"] = "float16"
        elif lie == "shape":
            image["shape"][1] = 4
            for shape in shapes.values():
                shape[1] = 4

    folder = reseal(built(), change)
    trt.profiles = {"image": [(1, 3, 8, 8)] * 3} if lie == "profile" else {}
    trt.fails = {"host"} if lie == "memory" else set()
    with pytest.raises(BundleError) as error:
        load_plan(folder, "vae_encoder", trt, device)
    assert f"engine 'rtx-fp16' of graph 'vae_encoder' {says}" in str(error.value)


def test_a_plan_that_changed_after_the_bundle_was_opened(
    built: Any, trt: FakeTensorRt, device: HostDevice
) -> None:
    bundle = Bundle.open(built())
    plan = bundle.manifest.engines[0].graphs["vae_encoder"].file
    raw = bytearray(bundle.file(plan).read_bytes())
    raw[-1] ^= 1
    for changed in (raw, raw[:-5], raw + b"x"):
        bundle.file(plan).write_bytes(changed)
        with pytest.raises(BundleError, match=r"vae_encoder.plan' is not the file that manifest"):
            load_plan(bundle, "vae_encoder", trt, device)
    assert trt.calls == []


def test_streamed_weights_stay_within_a_budget(
    built: Any, trt: FakeTensorRt, device: HostDevice
) -> None:
    bundle = Bundle.open(built(streamed=True))
    for most, kept in ((None, 1000), (700, 600), (50, 0), (5000, 1000)):
        engine = load_plan(bundle, "vae_encoder", trt, device, weights_bytes=most)
        assert engine._read.engine.weight_streaming_budget_v2 == kept
    plain = load_plan(built(), "vae_encoder", trt, device, weights_bytes=700)
    assert plain._read.engine.weight_streaming_budget_v2 == -2


def test_a_plan_too_large_for_a_budget_streams(
    built: Any, device: HostDevice, colours: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sizes(_bundle: Any, variant: Any, _graph: str, part: PartMemory) -> PartMemory:
        return PartMemory(part.key, 10_000, 10, 1000 if variant.streamed else None)

    monkeypatch.setattr(nvidia_driver, "free_memory", lambda _: 2**33)
    monkeypatch.setattr(residency, "of_plan", sizes)
    asked = {"provider": "tensorrt-rtx", "memory": GPU_BASE_BYTES + 10 + 5000}
    wanted = Segmenter.from_bundle(built(), provider="cpu").segment(colours, "red")
    monkeypatch.setattr(FakeEngine, "streamable_weights_size", 2**24)
    with pytest.raises(InputError, match=r"too little: .* needs .* at least, whole"):
        Segmenter.from_bundle(built(), **asked)
    segmenter = Segmenter.from_bundle(built(streamed=True), **asked)
    assert "transformer with 0 MiB of its weights on the GPU" in segmenter.provider_reason
    kept: list[int] = []
    monkeypatch.setattr(
        FakeEngine, "create_runtime_config", _noting(kept, FakeEngine.create_runtime_config)
    )
    found = segmenter.segment(colours, "red")
    np.testing.assert_allclose(found.score_map, wanted.score_map, atol=1e-6)
    assert device.trimmed == 2, "the one that left gave its memory back"
    assert kept == [4900] * 3, "less what the library keeps for itself"


def _noting(kept: list[int], real: Any) -> Any:
    def create(engine: FakeEngine) -> Any:
        kept.append(engine.weight_streaming_budget_v2)
        return real(engine)

    return create
