"""The reader feeds what the runtime feeds, finds what it finds, and refuses what is wrong.

A recording of the runtime's run stands in for the engine, and is compared with what it is fed.
"""

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
from tests import broken_manifests as broken
from tests.broken_manifests import LIST, MISSING, change, list_weights, mini, sized, weight
from tests.cpp.build import run
from tests.cpp.recording import recorders, write_graphs
from tests.paths import MINI, STREET

Json = dict[str, Any]
PILLOW = int(PIL.__version__.split(".")[0])


def _same(data: Json) -> None:
    """Leave a manifest as it is."""


def _bundle(folder: Path, change: Callable[[Json], Any] = _same) -> Path:
    shutil.copytree(MINI, folder)
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
    "fixed": ("scores", (90, 140), lambda data: data.update(sized())),
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
    image = np.asarray(Image.open(STREET).convert("RGB").resize(size))
    mode = capture or "scores"
    segmenter, engines = recorders(bundle, mode)
    # Fixed sizes are loaded each by itself; the recording is of the one that was taken.
    result = segmenter.segment(image, expression, paper=True)
    recording = write_graphs(tmp_path / "recording", segmenter.manifest.graphs, engines)
    done = _segment(reader, bundle, recording, image, expression, capture)
    assert done.returncode == 0, done.stderr
    mask = np.frombuffer((recording / "mask").read_bytes(), np.uint8).reshape(image.shape[:2])
    assert result.mask.any()
    assert (mask == result.mask).all()


def test_manifests_that_are_wrong(reader: Path, tmp_path: Path) -> None:
    bundle = _bundle(tmp_path / "bundle")
    for way, value, _, message in (case for case in broken.MINI if len(case) == 4):
        (bundle / "manifest.json").write_text(json.dumps(change(mini(), way, value)))
        _refused(reader, bundle, tmp_path, message)


@pytest.mark.parametrize(
    ("way", "value", "message"),
    [
        ("geometry resample", "nearest", "this reader knows lanczos"),
        ("noise shape", [96, 2304], "tokens, expected at most 96"),
        ("graphs transformer.scores", MISSING, "no graph 'transformer.scores'"),
        ("prompt max_length", 9, "expected 1 to 9"),
        ("prompt drop", 3, "'prompt.drop' is not 0"),
    ],
)
def test_manifests_of_what_this_reader_does_not_do(
    way: str, value: object, message: str, reader: Path, tmp_path: Path
) -> None:
    bundle = _bundle(tmp_path / "bundle", lambda data: data.update(change(data, way, value)))
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


def _manifest(text: str) -> Callable[[Path], Any]:
    return lambda bundle: (bundle / "manifest.json").write_text(text)


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
    "cut": (_manifest(json.dumps(mini())[:700]), "manifest.json cannot be read"),
    "deep": (_manifest("[" * 500_000), "manifest.json cannot be read"),
    "long": (_manifest(" " * 2**20 + "{}"), "expected at most 1 MiB"),
    "gone": (lambda bundle: (bundle / "manifest.json").unlink(), "no manifest.json"),
    "nothing": (lambda bundle: shutil.rmtree(bundle), "no bundle folder"),
    "link": (_link, "reached by a link"),
    "short": (lambda b: (b / "tokenizer.json").write_text("{}"), "has 2 bytes, expected 53122"),
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
        ("van " * 60, "expected 1 to 48: shorten"),
        ("v" * 5000, "expected at most 4096"),
    ],
)
def test_expressions_that_are_wrong(
    expression: str, message: str, reader: Path, tmp_path: Path
) -> None:
    _refused(reader, MINI, tmp_path, message, expression=expression)


def test_pictures_that_do_not_fit(reader: Path, tmp_path: Path) -> None:
    _refused(reader, MINI, tmp_path, "crop it around the object first", size=(10, 100))
    bundle = _bundle(tmp_path / "bundle", _geometry(resize="shrink", remainder="crop"))
    _refused(reader, bundle, tmp_path, "too small for this model", size=(7, 20))


def test_weights_that_a_plan_takes(reader: Path, tmp_path: Path) -> None:
    listed = {"a.b/c": weight(), "scalar": weight(length=8, dtype="int64", shape=[])}
    for dtype, size in (
        ("float32", 4), ("bfloat16", 2), ("float8_e4m3fn", 1), ("int32", 4), ("bool", 1)
    ):  # fmt: skip
        listed[dtype] = weight(dtype=dtype, shape=[96 // size], offset=0)
    bundle = _bundle(tmp_path / "bundle")
    list_weights(bundle, json.dumps(listed))
    done = run([reader, "weights", bundle, LIST])
    assert done.returncode == 0, done.stderr
    stored = (bundle / "vae_encoder.weights").read_bytes()
    wanted = []
    for name, each in sorted(read_bound_weights(Bundle.open(bundle), LIST).items()):
        digest = hashlib.sha256(stored[each.offset : each.offset + each.length]).hexdigest()
        facts = (name, each.file, each.offset, each.length, each.dtype, *each.shape, digest)
        wanted.append(" ".join(map(str, facts)))
    assert done.stdout.splitlines() == wanted


def test_weights_that_are_not_there(reader: Path, tmp_path: Path) -> None:
    lists = [(json.dumps({"w": case[1]}), case[3]) for case in broken.WEIGHTS if len(case) == 4]
    bundle = _bundle(tmp_path / "bundle")
    for text, message in [*lists, *(case[1::2] for case in broken.LISTS if len(case) == 4)]:
        list_weights(bundle, text)
        done = run([reader, "weights", bundle, LIST])
        assert done.returncode == 1
        assert message in done.stderr and LIST in done.stderr, done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_graph_that_is_fed_something_else(reader: Path, tmp_path: Path) -> None:
    mask = {"name": "quoted_mask", "dtype": "int64", "shape": ["batch", 48]}
    way = "graphs text_encoder inputs quoted_mask"
    bundle = _bundle(tmp_path / "bundle", lambda data: data.update(change(data, way, mask)))
    _refused(reader, bundle, tmp_path, "takes 'quoted_mask', which this reader does not know")
