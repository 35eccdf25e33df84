import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from rism.runtime import Segmenter
from rism.runtime.bundle.reader import Bundle, resolve_bundle
from rism.runtime.errors import BundleError
from tests.broken_manifests import MISSING, change
from tests.conftest import Reseal


def test_opens_and_maps_the_noise(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    noise = bundle.noise()
    assert noise.shape == (300, 3)
    assert noise.dtype == np.float32
    assert not noise.flags.writeable
    expected = np.random.default_rng(0).standard_normal((300, 3), dtype=np.float32)
    np.testing.assert_array_equal(noise, expected)


def _link(folder: Path, name: str) -> None:
    """Put a link to the right bytes in the place of a file."""
    (folder / name).rename(folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")


def _link_folder(folder: Path) -> None:
    (folder / "real").mkdir()
    (folder / "real" / "extra.txt").write_text("x")
    (folder / "linked").symlink_to(folder / "real")
    entry = {"sha256": hashlib.sha256(b"x").hexdigest(), "size": 1}
    data = json.loads((folder / "manifest.json").read_text())
    data["files"] |= {"real/extra.txt": entry, "linked/extra.txt": entry}
    (folder / "manifest.json").write_text(json.dumps(data))


def _pipe(folder: Path) -> None:
    (folder / "noise.f32").unlink()
    os.mkfifo(folder / "noise.f32")


def _manifest(content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / "manifest.json").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "noise.f32").unlink(), "'noise.f32' is missing: copy the whole folder"),
        (lambda f: os.truncate(f / "noise.f32", 3601), "'noise.f32' is 3601 bytes, expected 3600"),
        (lambda f: _link(f, "noise.f32"), "'noise.f32' is a link or not a plain file"),
        (_link_folder, "'linked/extra.txt' is a link"),
        (_pipe, "not a plain file"),
        (lambda f: (f / "sneaky.weights").write_bytes(b"x"), "'sneaky.weights' is not listed"),
        (lambda f: _link(f, "manifest.json"), "manifest.json is not a plain file"),
        (_manifest(b"{"), "is not readable JSON"),
        (_manifest(b"\xff\xfe"), "is not readable JSON"),
        (_manifest(b"[" * 200_000), "is not readable JSON"),
        (_manifest(b'{"a": ' + b"9" * 5000 + b"}"), "is not readable JSON"),
        (_manifest(b" " * (2**20 + 1)), "larger than 1 MiB"),
        (_manifest(b""), "manifest.json is empty"),
    ],
)
def test_a_damaged_folder_is_refused_without_hashing(
    tiny_bundle: Path, damage: Callable[[Path], Any], says: str
) -> None:
    damage(tiny_bundle)
    with pytest.raises(BundleError) as error:
        Bundle.open(tiny_bundle, verify=False)
    assert says in str(error.value)


def test_wrong_hash(tiny_bundle: Path) -> None:
    data = bytearray((tiny_bundle / "text_encoder.weights").read_bytes())
    data[0] ^= 1
    (tiny_bundle / "text_encoder.weights").write_bytes(data)
    with pytest.raises(BundleError, match=r"'text_encoder.weights' has sha256 \w{12}..., expected"):
        Bundle.open(tiny_bundle)
    Bundle.open(tiny_bundle, verify=False)


def test_no_bundle_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not there, expected a folder.*rism export --model"):
        Bundle.open(tmp_path / "none")
    with pytest.raises(BundleError, match=r"has no manifest.json"):
        Bundle.open(tmp_path)


IMAGE = "graphs vae_encoder inputs image"


@pytest.mark.parametrize(
    ("way", "value", "says"),
    [
        (f"{IMAGE} name", "picture", "vae_encoder.onnx' has no input 'picture' (the manifest's"),
        (f"{IMAGE} dtype", "float16", "'image' is tensor(float), expected tensor(float16)"),
        (f"{IMAGE} shape", [1, 4, "h", "w"], "has shape [1, 3, 'h', 'w'], expected [1, 4, 'h', 'w"),
        (f"{IMAGE} shape", [1, "h", "w"], "has shape [1, 3, 'h', 'w'], expected [1, 'h', 'w']"),
        ("graphs transformer.vectors inputs noise", MISSING, "does not list (noise)"),
    ],
)
def test_a_graph_that_is_not_the_manifests(
    tiny_bundle: Path, manifest_data: dict[str, Any], way: str, value: object, says: str
) -> None:
    (tiny_bundle / "manifest.json").write_text(json.dumps(change(manifest_data, way, value)))
    with pytest.raises(BundleError) as error:
        Segmenter.from_bundle(tiny_bundle, provider="cpu")
    assert says in str(error.value)


def test_bytes_that_are_no_graph(tiny_bundle: Path, reseal: Reseal) -> None:
    (tiny_bundle / "vae_encoder.onnx").write_bytes(b"not a graph")
    reseal(tiny_bundle)
    with pytest.raises(BundleError, match=r"'vae_encoder.onnx' is not a graph that onnxruntime"):
        Segmenter.from_bundle(tiny_bundle, provider="cpu")


def test_weights_outside_the_folder_are_not_read(
    tiny_bundle: Path, reseal: Reseal, externalise: Callable[..., None]
) -> None:
    outside = np.zeros((10, 3), np.float32)
    model = onnx.load(tiny_bundle / "text_encoder.onnx", load_external_data=False)
    del model.graph.initializer[-1]
    (tiny_bundle / "text_encoder.onnx").write_bytes(model.SerializeToString())
    externalise(tiny_bundle / "text_encoder.onnx", "table", outside, "../outside.weights")
    reseal(tiny_bundle)
    with pytest.raises(BundleError, match=r"'text_encoder.onnx' is not a graph that onnxruntime"):
        Segmenter.from_bundle(tiny_bundle, provider="cpu")


def test_notes_and_companions_of_macos_are_passed_over(tiny_bundle: Path) -> None:
    for name in ("._noise.f32", "__MACOSX/noise.f32", ".DS_Store", "NOTES.md"):
        (tiny_bundle / name).parent.mkdir(exist_ok=True)
        (tiny_bundle / name).write_bytes(b"\0\5\x16\7")
    Bundle.open(tiny_bundle)


def test_a_folder_named_like_the_built_in_bundle(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    built_in = resolve_bundle()
    (tmp_path / "mini").mkdir()
    assert resolve_bundle("mini") == built_in  # no bundle is in the folder
    (tmp_path / "mini").rmdir()
    tiny_bundle.rename(tmp_path / "mini")
    with pytest.raises(BundleError, match=r"write ./mini for the folder, or name no bundle"):
        resolve_bundle("mini")
    assert resolve_bundle("./mini") == resolve_bundle(Path("mini")) == Path("mini")
    assert resolve_bundle() == built_in


def test_resolving(tiny_bundle: Path) -> None:
    assert resolve_bundle(tiny_bundle) == tiny_bundle
    with pytest.raises(BundleError, match=r"no bundle 'giant', .* rism export --model ... -o DIR"):
        resolve_bundle("giant")
    with pytest.raises(BundleError, match="is a file, expected a folder"):
        resolve_bundle(tiny_bundle / "manifest.json")
