"""Repositories of bundles that are not like mini: looking, of fixed sizes, with engines, unfit."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import text_format

from rism.export.triton import Serving, TritonOptions, export_triton
from rism.export.triton.pbtxt import Word, write
from rism.runtime import BundleError, InputError, OutputError, ProviderError, RismError
from rism.runtime.bundle.reader import Bundle, resolve_bundle
from tests.conftest import fix_sizes, seal
from tests.export.triton.client import recorded, request, same
from tests.export.triton.server import Server, schema
from tests.runtime.prompt.test_vision_encoder import unplaced
from tests.runtime.vision_language import SMALL, make_bundle, rules


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Mini, to be changed."""
    return Path(shutil.copytree(resolve_bundle(), tmp_path / "mini"))


def picture(height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(height).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    return coarse[np.arange(height) * 5 // height][:, np.arange(width) * 7 // width]


@pytest.mark.parametrize("padding", ["zeros", "none"])
def test_a_text_encoder_that_looks(padding: str, tmp_path: Path) -> None:
    given = SMALL if padding == "none" else rules(vision=SMALL.vision, max_length=90)
    folder = make_bundle(tmp_path / "looking", given)
    if padding == "zeros":
        unplaced(folder)
    bundle = Bundle.open(seal(folder))
    report = export_triton(bundle, tmp_path / "out", TritonOptions())
    server = Server(report.path)
    # Rows share the picture in the text encoder; with positions on the grid, in both.
    assert server.configs["text_encoder"].max_batch_size == 0
    joins = server.configs["transformer_vectors"].max_batch_size
    assert joins == (8 if padding == "zeros" else 0)
    joint = server.configs["transformer_inputs"]
    filled = "prompt_embeds" in {tensor.name for tensor in joint.input}
    assert filled == (padding == "zeros") == (not joint.instance_group)
    asked = {tensor.name for tensor in server.configs["rism_vectors"].input}
    assert {"pixel_values", "patch_positions", "position_ids", "prompt_mask"} <= asked
    said = ["the red hat", "the hat red"] if padding == "none" else ["the hat", "the man's red hat"]
    requests, wanted = [], []
    for seen in (picture(96, 128), picture(128, 96)):
        _, engines, _ = recorded(bundle, seen, said, "vectors")
        assert len(engines["transformer"].gave) == 1
        requests.append(request(server, "rism_vectors", engines))
        wanted.append(engines["transformer"].gave[-1])
    for answer, outputs in zip(server.infer("rism_vectors", *requests), wanted, strict=True):
        same(answer, outputs)


@pytest.mark.parametrize("batch", [1, None])
def test_fixed_sizes(batch: int | None, copy: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(fix_sizes(copy, [(128, 96), (96, 128)], batch=batch))
    report = export_triton(bundle, tmp_path / "out", TritonOptions(link=True))
    assert [chain.size_wh for chain in report.chains] == [(128, 96), (96, 128)]
    server = Server(report.path)
    parts = ("rism_scores", "vae_encoder", "transformer_inputs", "transformer_scores")
    models = {f"{name}_{size}" for name in parts for size in ("128x96", "96x128")}
    assert set(server.configs) == {"text_encoder", *models}
    for size, seen in (("128x96", picture(60, 80)), ("96x128", picture(80, 60))):
        name = f"rism_scores_{size}"
        tensors = {t.name: list(t.dims) for t in server.configs[name].input}
        assert tensors["input_ids"] == [batch or -1, 48]
        assert tensors["image"] == [1, 3, *(int(side) for side in reversed(size.split("x")))]
        transformer = server.configs[f"transformer_scores_{size}"]
        assert transformer.max_batch_size == (0 if batch == 1 else 8)
        _, engines, _ = recorded(bundle, seen, ["the green van"])
        [answer] = server.infer(name, request(server, name, engines))
        same(answer, engines["transformer"].gave[-1])


def add_engine(folder: Path, **changes: Any) -> Path:
    """Give mini an engine whose plans are graphs in one file, which the tests' server runs."""
    place = folder / "engines/tensorrt-fp32"
    place.mkdir(parents=True)
    rows, tokens = (1, 4), (48, 576)
    ranges: dict[str, dict[str, list[Any]]] = {
        "text_encoder": {"input_ids": [rows, 48], "attention_mask": [rows, 48]},
        "transformer.scores": {
            "clean_latents": [rows, tokens, 384],
            "noise": [1, tokens, 384],
            "prompt_embeds": [rows, 48, 192],
            "prompt_weights": [rows, 48],
            "positions": [tokens, 2],
        },
    }
    graphs: dict[str, dict[str, Any]] = {}
    for name, shapes in ranges.items():
        plan = place / f"{name}.plan"
        onnx.save(onnx.load(folder / f"{name}.onnx"), plan)
        graphs[name] = {"file": plan.relative_to(folder).as_posix(), "shapes": {}}
        if changes.get("stripped"):
            graphs[name]["refit"] = f"{name}.onnx"
        for tensor, sides in shapes.items():
            low, high = ([n[i] if isinstance(n, tuple) else n for n in sides] for i in (0, 1))
            graphs[name]["shapes"][tensor] = {"min": low, "opt": high, "max": high}
        if changes.get("bound"):
            file = place / f"{name}.weights.json"
            file.write_text("{}")
            graphs[name]["weights"] = file.relative_to(folder).as_posix()
    engine = {
        "name": "tensorrt-fp32", "target": "tensorrt", "version": "11.0.0.114",
        "platform": "linux-x86_64", "compute_capabilities": ["9.0"], "precision": "fp32",
        "stripped": False, "graphs": graphs,
    } | changes  # fmt: skip
    return seal(folder, lambda manifest: manifest.update(engines=[engine]))


def test_an_engine_in_the_place_of_graphs(copy: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(add_engine(copy))
    report = export_triton(bundle, tmp_path / "out", TritonOptions(engine="tensorrt-fp32"))
    folder = report.path
    for graph, model in (("text_encoder",) * 2, ("transformer.scores", "transformer_scores")):
        plan = copy / f"engines/tensorrt-fp32/{graph}.plan"
        assert (folder / model / "1/model.plan").read_bytes() == plan.read_bytes()
        assert [f.name for f in (folder / model / "1").iterdir()] == ["model.plan"]
    server = Server(folder)
    platforms = {name: config.platform for name, config in server.configs.items()}
    assert platforms == {
        "rism_scores": "ensemble",
        "text_encoder": "tensorrt_plan",
        "transformer_inputs": "onnxruntime_onnx",
        "transformer_scores": "tensorrt_plan",
        "vae_encoder": "onnxruntime_onnx",
    }
    # A plan is served as it is built: not more rows than its profile has, and noise for all.
    assert server.configs["text_encoder"].max_batch_size == 4
    transformer = server.configs["transformer_scores"]
    assert transformer.max_batch_size == 0
    dims = {tensor.name: list(tensor.dims) for tensor in transformer.input}
    assert dims["clean_latents"] == [-1, -1, 384]
    assert dims["noise"] == [1, -1, 384] and dims["positions"] == [-1, 2] and dims["tau"] == [1]
    _, engines, _ = recorded(bundle, picture(96, 128), ["the green van", "the red car"])
    [answer] = server.infer("rism_scores", request(server, "rism_scores", engines))
    same(answer, engines["transformer"].gave[-1])


@pytest.mark.parametrize(
    ("changes", "asked", "message"),
    [
        ({}, "fast", r"engine is 'fast', this bundle has tensorrt-fp32: build one with rism build"),
        ({"target": "tensorrt-rtx"}, None, "is of tensorrt-rtx, expected tensorrt"),
        ({"stripped": True}, None, "has no weights, expected whole plans.*--strip-weights"),
        ({"bound": True}, None, "takes its weights as inputs, expected whole.*--bind-weights"),
        ({"platform": "windows-x86_64"}, None, "is for windows-x86_64, expected linux"),
    ],
)
def test_engines_that_triton_cannot_load(
    changes: dict[str, Any], asked: str | None, message: str, copy: Path, tmp_path: Path
) -> None:
    bundle = Bundle.open(add_engine(copy, **changes))
    with pytest.raises(InputError, match=message):
        export_triton(bundle, tmp_path / "out", TritonOptions(engine=asked or "tensorrt-fp32"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TritonOptions(capture="tables"), "capture is 'tables', this bundle has vectors"),
        (TritonOptions(max_batch=0), "max batch is 0, expected 1 to 256"),
        (TritonOptions(serving=Serving(instances=0)), "number of instances is 0, expected 1"),
        (TritonOptions(serving=Serving(queue_delay_us=-1)), "queue delay is -1, expected 0"),
        (TritonOptions(serving=Serving(device="tpu")), "device is 'tpu', expected auto, gpu, cpu"),
        (TritonOptions(tau=1.0), "tau is 1.0, expected a number from 0 to below 1"),
        (TritonOptions(prefix="../"), r"prefix is '\.\./', expected up to 40 of a-z"),
    ],
)
def test_options_that_are_none(options: TritonOptions, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        export_triton(Bundle.open(resolve_bundle()), tmp_path / "out", options)
    assert not list(tmp_path.iterdir())


def test_bfloat16_on_a_cpu(copy: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(seal(copy, lambda data: data["precision"].update(compute="bfloat16")))
    options = TritonOptions(serving=Serving(device="cpu"))
    with pytest.raises(ProviderError, match=r"cpu \(--device cpu\) cannot run this bundle"):
        export_triton(bundle, tmp_path / "out", options)


def test_a_place_that_is_taken(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine").write_text("kept")
    with pytest.raises(OutputError, match="exists and is not empty: remove it or choose another"):
        export_triton(Bundle.open(resolve_bundle()), output, TritonOptions())
    assert [file.name for file in output.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "damage",
    [
        (b"", b"no graph at all", "'transformer.scores.onnx' is not a graph that can be read"),
        # In the place of names that are as long.
        (b"transformer.weights", b"../../../etc/passwd", "has weights in '../../../etc/passwd', "
         "which the manifest does not list"),
        (b"noise", b"noisy", "has no input 'noise', expected the manifest's inputs"),
    ],
)  # fmt: skip
def test_graphs_that_are_not_what_the_manifest_says(
    damage: tuple[bytes, bytes, str], copy: Path, tmp_path: Path
) -> None:
    file = copy / "transformer.scores.onnx"
    old, new, message = damage
    content = file.read_bytes()
    file.write_bytes(content.replace(old or content, new))
    bundle = Bundle.open(seal(copy))
    with pytest.raises(BundleError, match=message):
        export_triton(bundle, tmp_path / "out", TritonOptions())
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match=r"needs 0\.1 GB, its disk has 0\.0 GB free: .*--link"):
        export_triton(Bundle.open(resolve_bundle()), tmp_path / "out", TritonOptions())
    assert not (tmp_path / "out").exists()


def test_every_refusal_is_one_line(copy: Path, tmp_path: Path) -> None:
    options = TritonOptions(engine="two\nlines", capture="scores")
    with pytest.raises(RismError) as caught:
        export_triton(Bundle.open(copy), tmp_path / "out", options)
    assert "\n" not in str(caught.value) and "this bundle has none" in str(caught.value)


def test_text_format_keeps_any_text() -> None:
    name = 'a"b\\c\n\u00e9 \x01'
    text = write([("name", name), ("input", [("name", "x"), ("data_type", Word("TYPE_BOOL"))])])
    parsed = text_format.Parse(text, schema().ModelConfig())
    assert parsed.name == name
    assert parsed.input[0].data_type == schema().TYPE_BOOL
