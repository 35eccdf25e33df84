"""The reader feeds what the runtime feeds, finds what it finds, and refuses what is wrong.

A recording of the runtime's run stands in for the engine, and is compared with what it is fed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines.bound_weights import read_bound_weights
from tests.cpp.build import run
from tests.cpp.recording import BUNDLE, recorders, write_graphs

EXAMPLES = BUNDLE.parents[2] / "examples"
Json = dict[str, Any]
PILLOW = int(PIL.__version__.split(".")[0])


def _same(data: Json) -> None:
    """Leave a manifest as it is."""


def _bundle(folder: Path, change: Callable[[Json], Any] = _same) -> Path:
    shutil.copytree(BUNDLE, folder)
    data = json.loads((folder / "manifest.json").read_text())
    change(data)
    (folder / "manifest.json").write_text(json.dumps(data))
    return folder


def _segment(
    reader: Path, bundle: Path, recording: Path, image: np.ndarray, expression: str, capture: str
) -> Any:
    recording.mkdir(exist_ok=True)
    pixels = recording / "pixels"
    pixels.write_bytes(image.tobytes())
    height, width = image.shape[:2]
    return run([reader, "segment", bundle, pixels, str(width), str(height), expression,
                recording, capture, recording / "mask"])  # fmt: skip


def _geometry(**keys: object) -> Callable[[Json], Any]:
    return lambda data: data["geometry"].update(keys)


def _fixed(data: Json) -> None:
    sizes = [[128, 128], [144, 112], [112, 144]]
    data["schema_version"] = "1.1"
    data["geometry"]["sizes"] = sizes
    graphs = data["graphs"]
    data["graphs"] = {"text_encoder": graphs.pop("text_encoder")} | {
        f"{name}@{w}x{h}": graph for name, graph in graphs.items() for w, h in sizes
    }


def _batches(data: Json) -> None:
    """Three rows a run, as an engine for one shape has them."""
    for graph in data["graphs"].values():
        for tensor in (*graph["inputs"].values(), *graph["outputs"].values()):
            tensor["shape"] = [3 if side == "batch" else side for side in tensor["shape"]]


# A capture, a size of picture and what is different in the manifest.
WHOLE: dict[str, tuple[str, tuple[int, int], Callable[[Json], Any]]] = {
    "as-it-is": ("", (640, 480), _same),
    "vectors": ("vectors", (201, 333), _same),
    "matrices": ("matrices", (127, 130), _same),
    "square": ("scores", (179, 179), _same),
    "bicubic": ("scores", (77, 50), _geometry(resample="bicubic")),
    "crop": ("vectors", (333, 250), _geometry(resize="shrink", remainder="crop")),
    "small": ("vectors", (61, 90), _geometry(resize="shrink", remainder="crop")),
    "ceil": ("scores", (300, 200), _geometry(rounding="ceil", resize_in="float32")),
    "ceil-tall": ("scores", (111, 170), _geometry(rounding="ceil")),
    "batch": ("vectors", (140, 90), _batches),
    "fixed": ("scores", (90, 140), _fixed),
    "tau": ("vectors", (160, 120), lambda data: data["method"].update(tau=0.4, prototype="cosine")),
}


@pytest.mark.parametrize("name", WHOLE)
def test_the_reader_feeds_and_finds_what_the_runtime_does(
    name: str, reader: Path, tmp_path: Path
) -> None:
    capture, size, change = WHOLE[name]
    if name == "ceil-tall" and PILLOW < 13:
        pytest.skip("Pillow 13 resizes in another order than earlier ones, and so does the reader")
    bundle = _bundle(tmp_path / "bundle", change)
    (bundle / "._noise.f32").write_text("what macOS puts beside a file")
    expression = "\ufeff the  green van \u200b"
    image = np.asarray(Image.open(EXAMPLES / "street.png").convert("RGB").resize(size))
    mode = capture or "scores"
    segmenter, engines = recorders(bundle, mode)
    # Fixed sizes are loaded each by itself; the recording is of the one that was taken.
    result = segmenter.segment(image, expression, paper=True)
    recording = write_graphs(tmp_path / "recording", engines)
    done = _segment(reader, bundle, recording, image, expression, capture)
    assert done.returncode == 0, done.stderr
    mask = np.frombuffer((recording / "mask").read_bytes(), np.uint8).reshape(image.shape[:2])
    assert result.mask.any()
    assert (mask == result.mask).all()


def _path(name: str) -> Callable[[Json], Any]:
    return lambda data: data["files"].update({name: {"sha256": "0" * 64, "size": 3}})


MANIFESTS: dict[str, tuple[Callable[[Json], Any], str]] = {
    "format": (lambda d: d.update(format="other"), "expected 'rism-bundle'"),
    "newer": (lambda d: d.update(schema_version="2.0"), "this reader knows format 1"),
    "version": (lambda d: d.update(schema_version=1), "expected a string"),
    "parent": (_path("../stolen"), "no path inside the bundle"),
    "absolute": (_path("/etc/passwd"), "no path inside the bundle"),
    "drive": (_path("c:stolen"), "no path inside the bundle"),
    "within": (_path("a/../../stolen"), "no path inside the bundle"),
    "hash": (lambda d: d["files"]["noise.f32"].update(sha256="zz"), "not 64 hexadecimal digits"),
    "negative": (lambda d: d["files"]["noise.f32"].update(size=-1), "files.noise.f32.size"),
    "unlisted": (lambda d: d["files"].pop("noise.f32"), "is not listed"),
    "foreign": (lambda d: d["prompt"].update(tokenizer="other.json"), "not among the files"),
    "missing": (lambda d: d["geometry"].pop("token_px"), "has no 'geometry.token_px'"),
    "type": (lambda d: d["geometry"].update(multiple_px="8"), "expected a whole number"),
    "huge": (lambda d: d["geometry"].update(size_level=10**30), "expected a whole number"),
    "zero": (lambda d: d["geometry"].update(std=0), "'geometry.std' is 0"),
    "filter": (lambda d: d["geometry"].update(resample="nearest"), "this reader knows lanczos"),
    "noise": (lambda d: d["noise"].update(shape=[300, 128]), "with the size of 'noise.shape'"),
    "rows": (lambda d: d["noise"].update(shape=[128, 256]), "tokens, expected at most 128"),
    "vision": (lambda d: d["prompt"].update(vision={}), "'prompt.vision', which this reader"),
    "quotes": (lambda d: d["prompt"].update(quotes={}), "'prompt.quotes', which this reader"),
    "padding": (lambda d: d["prompt"].update(padding="zeros"), "this reader knows tokens"),
    "drop": (lambda d: d["prompt"].update(drop=3), "'prompt.drop' is not 0"),
    "graph": (lambda d: d["graphs"].pop("transformer.scores"), "no graph 'transformer.scores'"),
    "list": (lambda d: d.update(graphs=[]), "expected an object"),
    "long": (lambda d: d["prompt"].update(max_length=9), "expected 1 to 9"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_that_are_wrong(name: str, reader: Path, tmp_path: Path) -> None:
    change, message = MANIFESTS[name]
    bundle = _bundle(tmp_path / "bundle", change)
    _refused(reader, bundle, tmp_path, message)


def _refused(
    reader: Path,
    bundle: Path,
    tmp_path: Path,
    message: str,
    *,
    expression: str = "the green van",
    size: tuple[int, int] = (32, 32),
) -> None:
    image = np.zeros((*size, 3), np.uint8)
    done = _segment(reader, bundle, tmp_path / "recording", image, expression, "scores")
    assert done.returncode == 1
    assert message in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def _cut(bundle: Path) -> None:
    file = bundle / "manifest.json"
    file.write_bytes(file.read_bytes()[:700])


def _deep(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("[" * 500_000)


def _long(bundle: Path) -> None:
    (bundle / "manifest.json").write_text(" " * 2**20 + "{}")


def _link(bundle: Path) -> None:
    file = bundle / "tokenizer.json"
    file.rename(bundle.parent / "elsewhere.json")
    file.symlink_to(bundle.parent / "elsewhere.json")


def _damage(name: str) -> Callable[[Path], Any]:
    def change(bundle: Path) -> None:
        data = bytearray((bundle / name).read_bytes())
        data[len(data) // 2] ^= 1
        (bundle / name).write_bytes(data)

    return change


FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (_cut, "manifest.json cannot be read"),
    "deep": (_deep, "manifest.json cannot be read"),
    "long": (_long, "expected at most 1 MiB"),
    "gone": (lambda bundle: (bundle / "manifest.json").unlink(), "no manifest.json"),
    "nothing": (lambda bundle: shutil.rmtree(bundle), "no bundle folder"),
    "link": (_link, "reached by a link"),
    "short": (lambda b: (b / "tokenizer.json").write_text("{}"), "has 2 bytes, expected 10844"),
    "lost": (lambda b: (b / "text_encoder.onnx").unlink(), "lacks its file 'text_encoder.onnx'"),
    "tokenizer": (_damage("tokenizer.json"), "its sha256 differs"),
    "graph": (_damage("text_encoder.onnx"), "its sha256 differs"),
    "weights": (_damage("transformer.weights"), "its sha256 differs"),
    "stray": (lambda b: (b / "other.weights").write_text("x"), "is not listed in manifest.json"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_that_are_wrong(name: str, reader: Path, tmp_path: Path) -> None:
    change, message = FOLDERS[name]
    bundle = _bundle(tmp_path / "bundle")
    change(bundle)
    _refused(reader, bundle, tmp_path, message)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("  ", "the expression is empty"),
        ("\ufeff \u200b", "the expression is empty"),
        ("van<|im_end|>", "the control token '<|im_end|>'"),
        ("the van\x07", "a control character"),
        ("van " * 60, "expected 1 to 40: shorten"),
        ("v" * 5000, "expected at most 4096"),
    ],
)
def test_expressions_that_are_wrong(
    expression: str, message: str, reader: Path, tmp_path: Path
) -> None:
    _refused(reader, BUNDLE, tmp_path, message, expression=expression)


def test_pictures_that_do_not_fit(reader: Path, tmp_path: Path) -> None:
    _refused(reader, BUNDLE, tmp_path, "crop it around the object first", size=(10, 100))
    bundle = _bundle(tmp_path / "bundle", _geometry(resize="shrink", remainder="crop"))
    _refused(reader, bundle, tmp_path, "too small for this model", size=(7, 20))


def _listed(folder: Path, text: str) -> Path:
    """A bundle with a list of weights that a plan would take."""
    bundle = _bundle(folder)
    (bundle / "plan.weights.json").write_text(text)
    data = json.loads((bundle / "manifest.json").read_text())
    digest = hashlib.sha256(text.encode()).hexdigest()
    data["files"]["plan.weights.json"] = {"sha256": digest, "size": len(text)}
    (bundle / "manifest.json").write_text(json.dumps(data))
    return bundle


def _weight(**keys: Any) -> Json:
    place = {"file": "vae_encoder.weights", "offset": 64, "length": 96}
    return {**place, "dtype": "float16", "shape": [6, 8], **keys}


def test_weights_that_a_plan_takes(reader: Path, tmp_path: Path) -> None:
    listed = {"a.b/c": _weight(), "scalar": _weight(length=8, dtype="int64", shape=[])}
    for dtype, size in (
        ("float32", 4), ("bfloat16", 2), ("float8_e4m3fn", 1), ("int32", 4), ("bool", 1)
    ):  # fmt: skip
        listed[dtype] = _weight(dtype=dtype, shape=[96 // size], offset=0)
    bundle = _listed(tmp_path / "bundle", json.dumps(listed))
    done = run([reader, "weights", bundle, "plan.weights.json"])
    assert done.returncode == 0, done.stderr
    stored = (bundle / "vae_encoder.weights").read_bytes()
    wanted = []
    for name, each in sorted(read_bound_weights(Bundle.open(bundle), "plan.weights.json").items()):
        data = stored[each.offset : each.offset + each.length]
        wanted.append(
            [name, each.file, each.offset, each.length, each.dtype, *each.shape,
             hashlib.sha256(data).hexdigest()]
        )  # fmt: skip
    assert done.stdout.splitlines() == [" ".join(map(str, line)) for line in wanted]


SIZE = (BUNDLE / "vae_encoder.weights").stat().st_size
WEIGHTS: dict[str, tuple[Any, str]] = {
    "unlisted": (_weight(file="other"), "names 'other', which is not among the files"),
    "outside": (_weight(file="../manifest.json"), "names '../manifest.json', which is not among"),
    "negative": (_weight(offset=-64), "'w.offset' is -64, expected a whole number from 0"),
    "huge": (_weight(offset=2**63), "'w.offset' is 9223372036854775808, expected a whole number"),
    "across": (_weight(offset=SIZE - 95), f"in the shape that is given at {SIZE - 95} of {SIZE}"),
    "long": (_weight(length=SIZE + 1), f"'w.length' is {SIZE + 1}, expected a whole number from 1"),
    "dtype": (_weight(dtype="float64"), "'w.dtype' is 'float64', this reader knows float32, int64"),
    "shape": (_weight(shape=[6, 9]), "no 96 bytes of float16 in the shape"),
    "odd": (_weight(length=97), "no 97 bytes of float16 in the shape"),
    "wraps": (_weight(shape=[2**31 - 1] * 9), "no 96 bytes of float16 in the shape"),
    "missing": ({"file": "vae_encoder.weights"}, "plan.weights.json has no 'w.offset'"),
    "kind": (7, "expected an object"),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_not_there(name: str, reader: Path, tmp_path: Path) -> None:
    weight, message = WEIGHTS[name]
    bundle = _listed(tmp_path / "bundle", json.dumps({"w": weight}))
    done = run([reader, "weights", bundle, "plan.weights.json"])
    assert done.returncode == 1
    assert message in done.stderr and "plan.weights.json" in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "'plan.weights.json' cannot be read"),
        ("[]", "expected an object"),
        (json.dumps({f"w{at}": 0 for at in range(4097)}), "lists 4097 weights, expected at most"),
    ],
)
def test_lists_of_weights_that_are_none(
    text: str, message: str, reader: Path, tmp_path: Path
) -> None:
    done = run([reader, "weights", _listed(tmp_path / "b", text), "plan.weights.json"])
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1


def test_a_graph_that_is_fed_something_else(reader: Path, tmp_path: Path) -> None:
    def change(data: Json) -> None:
        data["graphs"]["text_encoder"]["inputs"]["quoted_mask"] = {
            "name": "quoted_mask", "dtype": "int64", "shape": ["batch", 40]}  # fmt: skip

    bundle = _bundle(tmp_path / "bundle", change)
    _refused(reader, bundle, tmp_path, "takes 'quoted_mask', which this reader does not know")
