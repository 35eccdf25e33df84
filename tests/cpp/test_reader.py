"""The reader without engine and codecs: it feeds what the runtime feeds, refuses what is wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image, ImageOps
from tokenizers import Tokenizer

from rism.runtime.images import load_image
from tests.cpp.build import TESTS, build, need, run
from tests.cpp.recording import BUNDLE, recorders, write_graphs

# Earlier ones go across first, whatever is taken away.
PILLOW = int(PIL.__version__.split(".")[0])
EXAMPLES = BUNDLE.parents[2] / "examples"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def built(cpp_build: Path) -> Path:
    return build(TESTS, cpp_build)


@pytest.fixture(scope="module")
def reader(built: Path) -> Path:
    return built / "reader_test"


# Tokens.


def _texts() -> list[str]:
    entries = json.loads((EXAMPLES / "examples.json").read_text())
    texts = [f"<|im_start|>user\nremove {e['expression']}<|im_end|>\n<think>\n\n" for e in entries]
    every = [chr(code) for code in range(1, 128)]
    # Each character alone, after and before a letter, a space and a line's end.
    texts += [
        f"{a}{b}{c}" for b in every for a, c in (("", ""), ("a", "b"), (" ", " "), ("\n", "x"))
    ]
    texts += [
        "it's IT'S we'Re they'LL I'd'd 'tis ''s '",
        "a  b   c \n\n d\t\te",
        " \r\n \n x",
        "x  ",
    ]
    texts += ["<|im_start", "<|im_end|><|im_end|>x<think></think", "0123 45a6", "remove the the"]
    rng = np.random.default_rng(3)
    parts = [
        *string.printable,
        "the ",
        " green van",
        "'ll",
        "<think>",
        "  ",
        "\n",
        "!?",
        "12",
        "re",
    ]
    return texts + ["".join(rng.choice(parts, 12)) for _ in range(2000)]


def _same(data: Json) -> None:
    """Leave a manifest or a tokenizer as it is."""


def _as_file(change: Callable[[Json], None], folder: Path) -> Path:
    data = json.loads((BUNDLE / "tokenizer.json").read_text())
    change(data)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(data))
    return file


def _old_merges(data: Json) -> None:
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]


def _whole_words(data: Json) -> None:
    data["model"]["ignore_merges"] = True
    data["model"]["merges"] = data["model"]["merges"][:100]


@pytest.mark.parametrize("change", [_same, _old_merges, _whole_words])
def test_tokens_are_those_of_tokenizers(
    change: Callable[[Json], None], reader: Path, tmp_path: Path
) -> None:
    file, texts = _as_file(change, tmp_path), _texts()
    lines = "".join(text.encode().hex() + "\n" for text in texts)
    done = run([reader, "tokens", file], input=lines)
    assert done.returncode == 0, done.stderr
    found = [[int(word) for word in line.split()] for line in done.stdout.splitlines()]
    tokenizer = Tokenizer.from_file(str(file))
    wanted = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    wrong = [text for text, a, b in zip(texts, found, wanted, strict=True) if a != b]
    assert not wrong, wrong[:5]


REFUSED_TOKENIZERS: dict[str, Callable[[Json], Any]] = {
    "another model than BPE": lambda d: d["model"].update(type="WordPiece"),
    "another split than Qwen's": lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(
        pattern={"Regex": "\\s+"}
    ),
    "another normalizer than NFC": lambda d: d.update(normalizer={"type": "Lowercase"}),
    "an added token with 'lstrip'": lambda d: d["added_tokens"][1].update(lstrip=True),
    "'model.byte_fallback'": lambda d: d["model"].update(byte_fallback=True),
    "which its vocabulary lacks": lambda d: d["model"]["merges"].append(["zz", "zz"]),
    "cannot be read": lambda d: d.update(model=3),
}


@pytest.mark.parametrize("message", REFUSED_TOKENIZERS)
def test_tokenizers_that_it_does_not_know(message: str, reader: Path, tmp_path: Path) -> None:
    file = _as_file(REFUSED_TOKENIZERS[message], tmp_path)
    done = run([reader, "tokens", file], input="61\n")
    assert done.returncode == 1
    assert message in done.stderr


def test_text_beyond_ascii_is_refused(reader: Path) -> None:
    done = run([reader, "tokens", BUNDLE / "tokenizer.json"], input="café".encode().hex() + "\n")
    assert done.returncode == 1
    assert "beyond ASCII" in done.stderr and "--ids" in done.stderr


# Digests and pictures.


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 119, 5000])
def test_sha256(size: int, reader: Path) -> None:
    data = bytes(i * 7 % 128 for i in range(size))
    done = run([reader, "sha256"], input=data.decode())
    assert done.stdout.strip() == hashlib.sha256(data).hexdigest()


FILTERS = ["lanczos", "bicubic", "bilinear", "hamming", "box"]


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("size", [(31, 9), (55, 20), (64, 48), (97, 200), (64, 7), (99, 40)])
def test_a_resize_is_pillows_to_the_bit(
    name: str, size: tuple[int, int], reader: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    # Black and white next to each other: filters with negative lobes overshoot.
    pixels = rng.choice(np.array([0, 40, 255], np.uint8), (48, 64, 3))
    (tmp_path / "in").write_bytes(pixels.tobytes())
    done = run([reader, "resize", tmp_path / "in", "64", "48", *map(str, size),
                str(FILTERS.index(name)), tmp_path / "out"])  # fmt: skip
    assert done.returncode == 0, done.stderr
    picture, how = Image.fromarray(pixels), Image.Resampling[name.upper()]
    down_first = 48 - size[1] > 2 * max(64 - size[0], 0)
    between = (64, size[1]) if down_first else (size[0], 48)
    wanted = picture.resize(between, how).resize(size, how)
    if PILLOW >= 13:
        assert picture.resize(size, how).tobytes() == wanted.tobytes()
    assert (tmp_path / "out").read_bytes() == wanted.tobytes()


def _pictures(folder: Path) -> dict[str, Path]:
    """Files of every kind that the program says it reads, and a few that it must refuse."""
    street = Image.open(EXAMPLES / "street.png").convert("RGB").resize((90, 61))
    alpha = np.arange(256, dtype=np.uint8)
    across, down = np.meshgrid(alpha, alpha)
    rgba = np.stack([across, 255 - across, across ^ down, down], axis=-1).astype(np.uint8)
    files: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.png": (street, {}),
        "rgba.png": (Image.fromarray(rgba), {}),
        "grey.png": (ImageOps.grayscale(street), {}),
        "grey-alpha.png": (Image.fromarray(rgba[..., 2:]), {}),
        "bits.png": (street.convert("1"), {}),
        "palette.png": (street.quantize(17), {"transparency": 3}),
        "colour-key.png": (street, {"transparency": street.getpixel((5, 5))}),
        "rgb.jpg": (street, {"quality": 90}),
        "progressive.jpg": (street, {"quality": 60, "progressive": True}),
        "444.jpg": (street, {"subsampling": 0}),
        "grey.jpg": (ImageOps.grayscale(street), {}),
        "cmyk.jpg": (street.convert("CMYK"), {}),
        "deep.png": (Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 99), {}),
        "other.bmp": (street, {}),
    }
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        files[f"turned-{turn}.jpg"] = (street, {"exif": exif})
    files["turned-6.png"] = (street, {"exif": exif})
    for name, (image, options) in files.items():
        image.save(folder / name, **options)
    (folder / "cut.png").write_bytes((folder / "rgb.png").read_bytes()[:4000])
    (folder / "cut.jpg").write_bytes((folder / "rgb.jpg").read_bytes()[:1500])
    (folder / "empty.png").write_bytes(b"")
    return {file.name: file for file in folder.iterdir()}


def test_pictures_are_read_as_the_runtime_reads_them(built: Path, tmp_path: Path) -> None:
    program = built / "picture_test"
    if not program.is_file():
        need("libpng or libjpeg is missing: apt-get install libpng-dev libjpeg-dev")
    refused = {
        "cmyk.jpg": "CMYK",
        "deep.png": "16 bits",
        "other.bmp": "neither PNG nor JPEG",
        "cut.png": "no usable PNG",
        "cut.jpg": "damaged",
        "empty.png": "neither PNG nor JPEG",
    }
    for name, file in sorted(_pictures(tmp_path).items()):
        done = run([program, "read", file, tmp_path / "pixels"])
        if name in refused:
            assert done.returncode == 1 and refused[name] in done.stderr, (name, done.stderr)
            continue
        assert done.returncode == 0, (name, done.stderr)
        wanted = load_image(file)
        width, height = map(int, done.stdout.split())
        pixels = np.frombuffer((tmp_path / "pixels").read_bytes(), np.uint8)
        assert (height, width, 3) == wanted.shape, name
        far = np.abs(pixels.reshape(wanted.shape).astype(int) - wanted)
        # Two builds of one JPEG decoder may round differently; PNG has nothing to round.
        assert far.max() <= (2 if name.endswith(".jpg") else 0), name


def test_masks_are_written_whole(built: Path, tmp_path: Path) -> None:
    program = built / "picture_test"
    if not program.is_file():
        need("libpng or libjpeg is missing: apt-get install libpng-dev libjpeg-dev")
    mask = np.random.default_rng(0).integers(0, 2, (23, 41), np.uint8)
    (tmp_path / "mask").write_bytes(mask.tobytes())
    done = run([program, "write", tmp_path / "mask", "41", "23", tmp_path / "mask.png"])
    assert done.returncode == 0, done.stderr
    assert (np.asarray(Image.open(tmp_path / "mask.png")) == mask * 255).all()
    (tmp_path / "folder.png").mkdir()
    done = run([program, "write", tmp_path / "mask", "41", "23", tmp_path / "folder.png"])
    assert done.returncode == 1 and "cannot be written" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.png", "mask", "mask.png"]


# Whole bundles, with a recording in place of the engine.


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
    image = np.asarray(Image.open(EXAMPLES / "street.png").convert("RGB").resize(size))
    mode = capture or "scores"
    segmenter, engines = recorders(bundle, mode)
    # Fixed sizes are loaded each by itself; the recording is of the one that was taken.
    result = segmenter.segment(image, " the  green van ")
    recording = write_graphs(tmp_path / "recording", engines)
    done = _segment(reader, bundle, recording, image, " the  green van ", capture)
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
        ("van<|im_end|>", "the special token '<|im_end|>'"),
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


def test_a_graph_that_is_fed_something_else(reader: Path, tmp_path: Path) -> None:
    def change(data: Json) -> None:
        data["graphs"]["text_encoder"]["inputs"]["quoted_mask"] = {
            "name": "quoted_mask", "dtype": "int64", "shape": ["batch", 40]}  # fmt: skip

    bundle = _bundle(tmp_path / "bundle", change)
    _refused(reader, bundle, tmp_path, "takes 'quoted_mask', which this reader does not know")
