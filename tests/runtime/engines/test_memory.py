"""A budget of memory: sizes are read, graphs take turns and run in stages, bits stay the same."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rism.runtime import BundleError, InputError, Segmenter
from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines import memory, nvidia_driver
from rism.runtime.engines.memory import (
    PartMemory,
    choose_residency,
    expected_budget,
    free_memory,
    parse_memory,
    parts_of,
)
from rism.runtime.engines.onnx_graph import read_graph
from rism.runtime.engines.onnxruntime import CPU
from rism.runtime.engines.onnxruntime_session import open_session
from rism.runtime.engines.stages import cut
from tests.runtime.engines.deep_bundle import deepen

GIB, MIB = 2**30, 2**20


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("8GiB", 8 * GIB), ("8 GB", 8 * 10**9), ("8GB", 8 * 10**9), ("8g", 8 * 10**9),
        ("1.5gib", GIB * 3 // 2), ("512 MiB", 512 * MIB), (" 2T ", 2 * 10**12), (4096, 4096),
        ("auto", None),
    ],
)  # fmt: skip
def test_sizes(text: str | int, nbytes: int | None) -> None:
    assert parse_memory(text) == nbytes


@pytest.mark.parametrize(
    "text", ["0GiB", 0, -1, True, "8", "GiB", "8 gigabytes", "", "1e9", "-8GB"]
)
def test_what_is_no_size(text: Any) -> None:
    with pytest.raises(InputError, match=r"^memory is .*, expected .*auto"):
        parse_memory(text)


def test_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_memory()
    assert free is not None
    budget, base = expected_budget("auto", gpu=None)
    assert base < budget < base + free
    with pytest.raises(InputError, match=r"9000TiB, this process can have .* GiB now: give less"):
        expected_budget("9000TiB", gpu=None)
    monkeypatch.setattr(nvidia_driver, "free_memory", lambda number: (8 + number) * GIB)
    assert expected_budget("auto", gpu=1)[0] < 9 * GIB
    assert expected_budget("8GiB", gpu=0)[0] == 8 * GIB
    with pytest.raises(InputError, match=r"8.5GiB, GPU 0 can have 8.00 GiB now"):
        expected_budget("8.5GiB", gpu=0)
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    with pytest.raises(InputError, match="does not say what is free, expected a size"):
        expected_budget("auto", gpu=None)


TEXT = PartMemory("text_encoder", 400, 50, 40)
VAE = PartMemory("vae_encoder", 30, 100, None)
DIT = PartMemory("transformer", 900, 100, 60)


@pytest.mark.parametrize(
    ("budget", "batch", "kind", "stages", "max_batch"),
    [
        (2230, 8, "resident", {}, 8),
        (2229, 8, "resident", {}, 1),
        (1530, 8, "resident", {}, 1),
        (1529, 8, "turns", {}, 1),
        (1100, 8, "turns", {}, 1),
        (1099, 8, "stages", {"transformer": (449, True)}, 1),
        (549, 1, "stages", {"transformer": (174, True), "text_encoder": (199, True)}, 1),
        (300, 1, "stages", {"transformer": (100, False), "text_encoder": (75, True)}, 1),
        (260, 1, "stages", {"transformer": (60, False), "text_encoder": (55, True)}, 1),
    ],
)
def test_what_stays(budget: int, batch: int, kind: str, stages: Any, max_batch: int) -> None:
    parts = [TEXT, VAE, DIT]
    found = choose_residency(parts, budget, base=100, max_batch=batch)
    assert (found.kind, dict(found.stages), found.max_batch) == (kind, stages, max_batch)
    assert found.peak <= budget
    assert found.moved == (0 if kind == "resident" else 1330)


@pytest.mark.parametrize(
    ("budget", "says"), [(259, "transformer needs .* a block"), (229, "vae_encoder needs .* whole")]
)
def test_too_little_for_one_block(budget: int, says: str) -> None:
    parts = [VAE, DIT] if "transformer" in says else [VAE]
    with pytest.raises(InputError, match=says):
        choose_residency(parts, budget, base=100)


@pytest.mark.parametrize("kind", ["float32", "float16", "int4", "int8"])
def test_stages_give_the_same_bits(
    tiny_bundle: Path, colours: np.ndarray, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepen(tiny_bundle, blocks=6, width=128, kind=kind)
    monkeypatch.setattr(memory, "_taken", lambda: 0)
    monkeypatch.setattr(memory, "CPU_BASE_BYTES", 0)
    parts = [part for part, _ in parts_of(Bundle.open(tiny_bundle), "vectors", on_gpu=False)]
    dit = parts[-1]
    assert dit.block is not None
    assert dit.weights / 7 < dit.block < dit.weights / 5
    activation = max(part.activation for part in parts)
    monkeypatch.setattr(memory.RunSizes, "activation", lambda *_, **__: activation)
    whole = Segmenter.from_bundle(tiny_bundle, provider="cpu")
    wanted = whole.segment(colours, "red")
    for nbytes, stages in ((activation + dit.block, 6), (activation + 5 * dit.block, 3)):
        segmenter = Segmenter.from_bundle(tiny_bundle, provider="cpu", memory=nbytes)
        assert f"transformer in {stages} stages of at most" in segmenter.provider_reason
        found = [segmenter.segment(colours, "red") for _ in range(2)][1]
        assert found.score_map.tobytes() == wanted.score_map.tobytes()
        assert found.refined.tobytes() == wanted.refined.tobytes()
    with pytest.raises(InputError, match="too little: transformer needs"):
        Segmenter.from_bundle(tiny_bundle, provider="cpu", memory=activation + dit.block - 1)


@pytest.mark.parametrize("memory_kind", ["bytes", "turns"])
def test_one_leaves_before_the_next_comes(
    tiny_bundle: Path,
    colours: np.ndarray,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
    memory_kind: str,
) -> None:
    monkeypatch.setattr(memory, "_taken", lambda: 0)
    monkeypatch.setattr(memory, "CPU_BASE_BYTES", 0)
    parts = [part for part, _ in parts_of(Bundle.open(tiny_bundle), "vectors", on_gpu=False)]
    least = max(part.weights + part.activation for part in parts)
    assert sum(part.weights for part in parts) + max(p.activation for p in parts) > least
    memory_given = least if memory_kind == "bytes" else "turns"
    segmenter = Segmenter.from_bundle(tiny_bundle, provider="cpu", memory=memory_given, threads=1)
    assert opened == [] and "when its turn comes" in segmenter.provider_reason
    segmenter.segment(colours, "red")
    assert [name.partition(".")[0] for name in opened] == [
        "text_encoder", "vae_encoder", "transformer",
    ]  # fmt: skip
    wanted = Segmenter.from_bundle(tiny_bundle, provider="cpu").segment(colours, ["red", "green"])
    found = segmenter.segment(colours, ["red", "green"])
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.score_map, other.score_map, atol=1e-6)


CHILD = """
import json, sys
from PIL import Image
from rism.runtime import Segmenter
memory = sys.argv[2] or None
segmenter = Segmenter.from_bundle(sys.argv[1], provider="cpu", threads=2, memory=memory)
image = Image.effect_noise((128, 128), 80).convert("RGB")
image.paste((255, 0, 0), (20, 20, 70, 70))
found = segmenter.segment(image.resize((96, 96), 0).resize((128, 128), 0), "red")
peak = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) * 1024
print(json.dumps([peak, segmenter.provider_reason]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's high-water mark")
@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_the_kernel_agrees(tiny_bundle: Path, kind: str) -> None:
    deepen(tiny_bundle, blocks=24, width=2048, kind=kind)

    def run(budget: str) -> tuple[int, str]:
        command = [sys.executable, "-c", CHILD, str(tiny_bundle), budget]
        peak, reason = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        print(kind, budget or "no budget", f"{peak / MIB:.0f} MiB", reason)
        return peak, reason

    whole, _ = run("")
    assert whole > 300 * MIB
    for budget in (220, 250):
        peak, reason = run(f"{budget}MiB")
        assert "stages of at most" in reason
        assert peak <= budget * MIB


def test_graphs_of_strangers(tiny_bundle: Path) -> None:
    deepen(tiny_bundle, blocks=2, width=64)
    bundle = Bundle.open(tiny_bundle)
    file = bundle.file("transformer.vectors.onnx")
    sound = file.read_bytes()
    graph = read_graph(file, bundle.manifest.files)
    with pytest.raises(ValueError, match=r"a block has \d+ bytes"):
        cut(graph, 16383, lambda weight: weight.nbytes)
    for damaged in (
        sound[: len(sound) // 2],
        sound.replace(b"transformer.weights", b"../formerly.weights"),
        sound.replace(b"transformer.weights", b"nothing_like.weight"),
        b"\xff" * 64,
        b"",
    ):
        file.write_bytes(damaged)
        if damaged:
            with pytest.raises(BundleError, match="is not a graph that can be read"):
                read_graph(file, bundle.manifest.files)
        else:
            assert read_graph(file, bundle.manifest.files).nodes == ()
    # Any byte may be another: an error of ours, or a graph.
    rng = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(sound)
        changed[rng.integers(len(sound))] = rng.integers(256)
        file.write_bytes(changed)
        try:
            cut(read_graph(file, bundle.manifest.files), 2**40, lambda weight: weight.nbytes)
        except BundleError:
            continue


@pytest.mark.skipif(sys.platform != "linux", reason="reads what the kernel counts")
def test_casts_that_stay_copy_no_weights(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    rows, width = 1024, 8192
    weight = np.ones((rows, width), np.float16)
    weight.tofile(tmp_path / "graph.weights")
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, size])
        for name, size in (("x", rows), ("y", width))
    )
    stored = onnx.numpy_helper.from_array(weight, "w")
    onnx.external_data_helper.set_external_data(stored, "graph.weights", 0, weight.nbytes)
    stored.ClearField("raw_data")
    stored.data_location = onnx.TensorProto.EXTERNAL
    nodes = [
        onnx.helper.make_node("Cast", ["w"], ["wide"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], [stored])
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "g.onnx"
    )
    taken = []
    for casts_stay in (True, True, False):  # the first one loads the library, too
        before = _anonymous()
        session = open_session(tmp_path / "g.onnx", CPU, 0, 1, lean=True, casts_stay=casts_stay)
        taken.append(_anonymous() - before)
        [made] = session.run(None, {"x": np.ones((1, rows), np.float32)})
        assert (made == rows).all()
    assert taken[1] < weight.nbytes / 2 < 2 * weight.nbytes <= taken[2] + MIB


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
