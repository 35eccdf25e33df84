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

Reseal = Callable[..., Path]


def test_opens_and_maps_the_noise(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    noise = bundle.noise()
    assert noise.shape == (300, 3)
    assert noise.dtype == np.float32
    assert not noise.flags.writeable
    expected = np.random.default_rng(0).standard_normal((300, 3), dtype=np.float32)
    np.testing.assert_array_equal(noise, expected)


def test_missing_file(tiny_bundle: Path) -> None:
    (tiny_bundle / "noise.f32").unlink()
    with pytest.raises(BundleError, match=r"'noise.f32' is missing: copy the whole folder"):
        Bundle.open(tiny_bundle)


def test_wrong_size_is_found_without_hashing(tiny_bundle: Path) -> None:
    with (tiny_bundle / "noise.f32").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BundleError, match=r"'noise.f32' is 3601 bytes, expected 3600: copy it"):
        Bundle.open(tiny_bundle, verify=False)


def test_wrong_hash(tiny_bundle: Path) -> None:
    data = bytearray((tiny_bundle / "text_encoder.weights").read_bytes())
    data[0] ^= 1
    (tiny_bundle / "text_encoder.weights").write_bytes(data)
    with pytest.raises(BundleError, match=r"'text_encoder.weights' has sha256 \w{12}..., expected"):
        Bundle.open(tiny_bundle)
    Bundle.open(tiny_bundle, verify=False)


@pytest.mark.parametrize("name", ["../noise.f32", "/etc/hostname", "a/../../x", "..", "a//b"])
def test_a_path_outside_the_folder(tiny_bundle: Path, reseal: Reseal, name: str) -> None:
    def change(data: dict[str, Any]) -> None:
        data["files"][name] = data["files"]["noise.f32"]

    reseal(tiny_bundle, change)
    with pytest.raises(BundleError, match="expected relative paths inside the bundle"):
        Bundle.open(tiny_bundle)


def test_a_link_is_refused_even_to_the_right_bytes(tiny_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    (tiny_bundle / "noise.f32").rename(target)
    (tiny_bundle / "noise.f32").symlink_to(target)
    with pytest.raises(BundleError, match=r"'noise.f32' is a link or not a plain file"):
        Bundle.open(tiny_bundle)


def test_a_linked_folder_inside_is_refused(tiny_bundle: Path, reseal: Reseal) -> None:
    (tiny_bundle / "real").mkdir()
    (tiny_bundle / "real" / "extra.txt").write_text("x")
    (tiny_bundle / "linked").symlink_to(tiny_bundle / "real")

    def change(data: dict[str, Any]) -> None:
        data["files"]["linked/extra.txt"] = data["files"]["real/extra.txt"]

    reseal(tiny_bundle, change)
    with pytest.raises(BundleError, match=r"'linked/extra.txt' is a link"):
        Bundle.open(tiny_bundle)


def test_a_fifo_does_not_hang(tiny_bundle: Path) -> None:
    (tiny_bundle / "noise.f32").unlink()
    os.mkfifo(tiny_bundle / "noise.f32")
    with pytest.raises(BundleError, match="not a plain file"):
        Bundle.open(tiny_bundle)


def test_unlisted_weights_are_refused(tiny_bundle: Path) -> None:
    (tiny_bundle / "sneaky.weights").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"'sneaky.weights' is not listed in manifest.json"):
        Bundle.open(tiny_bundle)


def test_a_note_beside_the_files_is_fine(tiny_bundle: Path) -> None:
    (tiny_bundle / "NOTES.md").write_text("mine")
    Bundle.open(tiny_bundle)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "is not readable JSON"),
        (b"\xff\xfe", "is not readable JSON"),
        (b"[" * 200_000, "is not readable JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not readable JSON"),
        (b" " * (2**20 + 1), "larger than 1 MiB"),
        (b"", "manifest.json is empty"),
    ],
)
def test_a_manifest_that_is_no_manifest(tiny_bundle: Path, content: bytes, expected: str) -> None:
    (tiny_bundle / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=expected):
        Bundle.open(tiny_bundle)


def test_a_linked_manifest_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    (tiny_bundle / "manifest.json").rename(tmp_path / "m.json")
    (tiny_bundle / "manifest.json").symlink_to(tmp_path / "m.json")
    with pytest.raises(BundleError, match=r"manifest.json is not a plain file"):
        Bundle.open(tiny_bundle)


def test_no_bundle_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not there, expected a folder.*rism export --model"):
        Bundle.open(tmp_path / "none")
    with pytest.raises(BundleError, match=r"has no manifest.json"):
        Bundle.open(tmp_path)


def test_a_graph_whose_tensors_are_not_the_manifests(tiny_bundle: Path, reseal: Reseal) -> None:
    model = onnx.load(tiny_bundle / "vae_encoder.onnx")
    model.graph.input[0].name = "picture"
    model.graph.node[0].input[0] = "picture"
    onnx.save(model, tiny_bundle / "vae_encoder.onnx")
    reseal(tiny_bundle)
    with pytest.raises(
        BundleError,
        match=r"'vae_encoder.onnx' has no input 'image' \(the manifest's 'image'\), it has picture",
    ):
        Segmenter.from_bundle(tiny_bundle, provider="cpu")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("dtype", "float16", r"input 'image' is tensor\(float\), expected tensor\(float16\)"),
        ("shape", [1, 4, "h", "w"], r"input 'image' has shape \[1, 3, 'h', 'w'\], expected \[1, 4"),
        ("shape", [1, "h", "w"], r"input 'image' has shape \[1, 3, 'h', 'w'\], expected \[1, 'h'"),
    ],
)
def test_a_tensor_of_another_type_or_rank(
    tiny_bundle: Path, reseal: Reseal, field: str, value: object, expected: str
) -> None:
    def change(data: dict[str, Any]) -> None:
        data["graphs"]["vae_encoder"]["inputs"]["image"][field] = value

    reseal(tiny_bundle, change)
    with pytest.raises(BundleError, match=expected):
        Segmenter.from_bundle(tiny_bundle, provider="cpu")


def test_an_input_the_manifest_does_not_list(tiny_bundle: Path, reseal: Reseal) -> None:
    def change(data: dict[str, Any]) -> None:
        del data["graphs"]["transformer.vectors"]["inputs"]["noise"]

    reseal(tiny_bundle, change)
    with pytest.raises(BundleError, match=r"has inputs the manifest does not list \(noise\)"):
        Segmenter.from_bundle(tiny_bundle, provider="cpu")


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


def test_companions_of_macos_are_passed_over(tiny_bundle: Path) -> None:
    for name in ("._noise.f32", "__MACOSX/noise.f32", ".DS_Store"):
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
