"""Weights that a plan takes as inputs: the bundle's own, once on the device for all plans."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from rism.export.engines.weights import weights_to_inputs
from rism.runtime import Segmenter
from rism.runtime.bundle.reader import Bundle, resolve_bundle
from rism.runtime.engines.bound_weights import read_bound_weights
from rism.runtime.engines.tensorrt import TensorRtEngine
from rism.runtime.errors import BundleError, ProviderError
from tests.broken_manifests import LIST, LISTS, WEIGHTS, list_weights
from tests.conftest import Reseal
from tests.runtime.engines.fake_tensorrt import (
    FakeTensorRt,
    HostDevice,
    load_plan,
    stand_in,
    variant,
)
from tests.runtime.engines.profiles import TEXT, VAE, transformer

Json = dict[str, Any]

WIDTH = 256
NAMES = ("w_in", "w_out")
MODES = ("vectors", "scores")
LISTED = "engines/rtx-fp16/transformer.vectors.weights.json"


class CountingDevice(HostDevice):
    """Tells which arrays of bytes it was asked for, and which are still held."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref[np.ndarray]] = []

    def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        array = super().empty(shape, dtype)
        if dtype == "uint8":
            self.made.append(weakref.ref(array))
        return array

    def held(self) -> list[int]:
        return sorted(each().nbytes for each in self.made if each() is not None)


def _with_weights(file: Path) -> None:
    """Pass the clean latents through two weights of the bundle, of two types."""
    model = onnx.load(file)
    for node in model.graph.node:
        node.input[:] = ["mixed" if name == "clean" else name for name in node.input]
    own = [
        helper.make_node("Cast", ["w_in"], ["w_in_32"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["clean", "w_in_32"], ["wide"]),
        helper.make_node("MatMul", ["wide", "w_out"], ["mixed"]),
    ]
    nodes = [*own, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    offset = 0
    for name, dtype, shape, length in (
        ("w_in", TensorProto.FLOAT16, (3, WIDTH), 3 * WIDTH * 2),
        ("w_out", TensorProto.FLOAT, (WIDTH, 3), 3 * WIDTH * 4),
    ):
        tensor = TensorProto(name=name, data_type=dtype, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": "transformer.weights", "offset": offset, "length": length}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        model.graph.initializer.append(tensor)
        offset += length
    file.write_bytes(model.SerializeToString())


@pytest.fixture
def built(tiny_bundle: Path, reseal: Reseal) -> Callable[..., Path]:
    """A bundle of two transformers on the same weights, and plans that take them as inputs."""
    rng = np.random.default_rng(5)
    w_in = rng.standard_normal((3, WIDTH)).astype(np.float16)
    w_out = np.linalg.pinv(w_in.astype(np.float32)) * 1.5
    stored = w_in.tobytes() + w_out.astype(np.float32).tobytes()
    (tiny_bundle / "transformer.weights").write_bytes(stored)
    for mode in MODES:
        _with_weights(tiny_bundle / f"transformer.{mode}.onnx")

    def build(change: Callable[[Json], Any] | None = None) -> Path:
        profiles = {"text_encoder": TEXT, "vae_encoder": VAE}
        profiles |= {"transformer.vectors": transformer(), "transformer.scores": transformer()}
        entry = variant(tiny_bundle, profiles)
        for mode in MODES:
            graph = f"transformer.{mode}"
            model = ir.load(tiny_bundle / f"{graph}.onnx")
            found = {name: vars(each) for name, each in weights_to_inputs(model).items()}
            plan = entry["graphs"][graph]
            ir.save(model, tiny_bundle / plan["file"])
            plan["weights"] = f"engines/rtx-fp16/{graph}.weights.json"
            if change is not None and mode == "vectors":
                change(found)
            (tiny_bundle / plan["weights"]).write_text(json.dumps(found))
        return reseal(tiny_bundle, lambda data: data.update(engines=[entry]))

    return build


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> CountingDevice:
    host = CountingDevice()
    stand_in(monkeypatch, host)
    return host


def _load(folder: Path, device: HostDevice, graph: str = "transformer.vectors") -> TensorRtEngine:
    return load_plan(folder, graph, FakeTensorRt(), device)


@pytest.mark.parametrize("capture", MODES)
def test_results_are_those_of_the_graph_with_its_weights_inside(
    built: Any, device: CountingDevice, colours: np.ndarray, capture: str
) -> None:
    bundle = built()
    plan = onnx.load(bundle / f"engines/rtx-fp16/transformer.{capture}.plan")
    assert not {*NAMES} & {each.name for each in plan.graph.initializer}
    engines = Segmenter.from_bundle(bundle, provider="tensorrt-rtx", capture=capture)
    graphs = Segmenter.from_bundle(bundle, provider="onnxruntime-cpu", capture=capture)
    for found, true in zip(
        engines.segment(colours, ["red", "the green", "blue"]),
        graphs.segment(colours, ["red", "the green", "blue"]),
        strict=True,
    ):
        np.testing.assert_allclose(found.score_map, true.score_map, atol=1e-6)
        assert found.mask.any() and (found.mask == true.mask).all()


def test_plans_share_weights_until_the_last_is_gone(built: Any, device: CountingDevice) -> None:
    folder = built()
    sizes = [3 * WIDTH * 2, 3 * WIDTH * 4]
    vectors = _load(folder, device)
    assert device.held() == sizes
    scores = _load(folder, device, "transformer.scores")
    assert len(device.made) == 2, "uploaded again"
    del vectors
    gc.collect()
    assert device.held() == sizes
    del scores
    gc.collect()
    assert device.held() == []
    assert _load(folder, device) and device.held() == sizes


def test_another_gpu_has_its_own(built: Any) -> None:
    folder, one, two = built(), CountingDevice(), CountingDevice()
    two.number = 1
    engines = [_load(folder, one), _load(folder, two)]
    assert one.held() == two.held() == [3 * WIDTH * 2, 3 * WIDTH * 4]
    assert len(engines) == 2


def test_a_gpu_that_is_too_small_for_the_weights(built: Any) -> None:
    class Full(HostDevice):
        def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
            raise MemoryError("Out of memory allocating 1,536 bytes")

    with pytest.raises(ProviderError) as error:
        _load(built(), Full())
    assert str(error.value) == (
        "engine 'rtx-fp16' of graph 'transformer.vectors' found too little memory on "
        "tensorrt-rtx:0 for its weights, 0.0 GB: see nvidia-smi, use a GPU with more, or an engine "
        "of fewer bytes (rism build --precision fp8)"
    )


def _set(**keys: Any) -> Callable[[Json], Any]:
    return lambda found: found["w_in"].update(keys)


def test_lists_of_weights_that_are_wrong(tmp_path: Path) -> None:
    folder = shutil.copytree(resolve_bundle(), tmp_path / "bundle")
    lists = [(json.dumps({"w": value}), says) for _, value, says, *_ in WEIGHTS]
    for text, says in [*lists, *((text, says) for _, text, says, *_ in LISTS)]:
        list_weights(folder, text)
        with pytest.raises(BundleError) as error:
            read_bound_weights(Bundle.open(folder, verify=False), LIST)
        assert says in str(error.value)
        assert str(error.value).startswith(LIST) and "\n" not in str(error.value)
        assert str(error.value).endswith(": build the engine again")


DIFFERENT: dict[str, tuple[Callable[[Json], Any], str]] = {
    "more": (lambda f: f.update(w_new=f["w_in"]), f"has inputs none, expected w_new by {LISTED}"),
    "fewer": (lambda f: f.pop("w_in"), f"has inputs w_in, expected none by {LISTED}"),
    "input": (
        lambda f: f.update(clean=f["w_in"]),
        f"has inputs none, expected clean, clean by {LISTED}",
    ),
    "type": (
        _set(dtype="bfloat16"),
        f"takes the weight 'w_in' as float16 [3, 256], expected bfloat16 [3, 256] by {LISTED}",
    ),
    "shape": (
        _set(shape=[256, 3]),
        f"takes the weight 'w_in' as float16 [3, 256], expected float16 [256, 3] by {LISTED}",
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_weights_that_are_not_the_plans(built: Any, name: str) -> None:
    change, says = DIFFERENT[name]
    device = CountingDevice()
    with pytest.raises(BundleError) as error:
        _load(built(change), device)
    assert str(error.value) == (
        f"engine 'rtx-fp16' of graph 'transformer.vectors' {says}: rism build B"
    )
    assert device.made == []


def test_a_list_of_weights_that_changed_after_the_bundle_was_opened(built: Any) -> None:
    folder = built()
    bundle = Bundle.open(folder)
    text = (folder / LISTED).read_text()
    (folder / LISTED).write_text(text.replace("3072", "3070"))
    with pytest.raises(BundleError, match=r"vectors.weights.json' is not the file that manifest"):
        load_plan(bundle, "transformer.vectors", FakeTensorRt(), HostDevice())
    (folder / LISTED).write_text(text)
    (folder / "transformer.weights").write_bytes(b"short")
    with pytest.raises(BundleError, match=r"'transformer.weights' cannot be read \(mmap length"):
        load_plan(bundle, "transformer.vectors", FakeTensorRt(), HostDevice())
