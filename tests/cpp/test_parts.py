"""The reader's parts do what the libraries of the Python runtime do."""

import hashlib
import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image, ImageOps
from tokenizers import Tokenizer

from rism.runtime.image.loading import load_image
from tests.cpp.build import run
from tests.paths import EXAMPLES, MINI, STREET

Json = dict[str, Any]
# Earlier ones go across first, whatever is taken away.
PILLOW = int(PIL.__version__.split(".")[0])


# Tokens.


def _texts() -> list[str]:
    entries = json.loads((EXAMPLES / "examples.json").read_text())
    texts = [f"<|im_start|>user\nremove {e['expression']}<|im_end|>\n<think>\n\n" for e in entries]
    every = [chr(code) for code in range(1, 128)]
    # Each character alone, after and before a letter, a space and a line's end.
    texts += [
        f"{a}{b}{c}" for b in every for a, c in (("", ""), ("a", "b"), (" ", " "), ("\n", "x"))
    ]
    texts += ["it's IT'S we'Re they'LL I'd'd 'tis ''s '", "a  b   c \n\n d\t\te", " \r\n \n x"]
    texts += ["x  ", "<|im_start", "<|im_end|><|im_end|>x<think></think"]
    texts += ["0123 45a6", "remove the the"]
    rng = np.random.default_rng(3)
    parts = [*string.printable, "the ", " green van", "'ll", "<think>", "  ", "!?", "12", "re"]
    return texts + ["".join(rng.choice(parts, 12)) for _ in range(2000)]


def _same(data: Json) -> None:
    """Leave a manifest or a tokenizer as it is."""


def _as_file(change: Callable[[Json], None], folder: Path) -> Path:
    data = json.loads((MINI / "tokenizer.json").read_text())
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
    done = run([reader, "tokens", MINI / "tokenizer.json"], input="café".encode().hex() + "\n")
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
    street = Image.open(STREET).convert("RGB").resize((90, 61))
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


@pytest.fixture
def program(built: Path) -> Path:
    found = built / "picture_test"
    if not found.is_file():
        pytest.skip("libpng or libjpeg is missing: apt-get install libpng-dev libjpeg-dev")
    return found


def test_pictures_are_read_as_the_runtime_reads_them(program: Path, tmp_path: Path) -> None:
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


def test_masks_are_written_whole(program: Path, tmp_path: Path) -> None:
    mask = np.random.default_rng(0).integers(0, 2, (23, 41), np.uint8)
    (tmp_path / "mask").write_bytes(mask.tobytes())
    done = run([program, "write", tmp_path / "mask", "41", "23", tmp_path / "mask.png"])
    assert done.returncode == 0, done.stderr
    assert (np.asarray(Image.open(tmp_path / "mask.png")) == mask * 255).all()
    (tmp_path / "folder.png").mkdir()
    done = run([program, "write", tmp_path / "mask", "41", "23", tmp_path / "folder.png"])
    assert done.returncode == 1 and "cannot be written" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.png", "mask", "mask.png"]
