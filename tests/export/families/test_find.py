"""Broken, foreign and hostile checkpoints: one line each, before any long work."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from rism.export import CheckpointError, ExportOptions, UnsupportedModelError, export_bundle
from rism.export.checkpoint.locate import content_digest
from rism.export.checkpoint.safetensors_store import open_folder, read_headers
from rism.export.families.find import find_checkpoint
from rism.export.refiner.qwen_files import find_language_model


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


Change = Callable[[Path], object]


def refuse(folder: Path | str, kind: type[Exception], match: str, output: Path) -> None:
    with pytest.raises(kind, match=match) as caught:
        export_bundle(str(folder), output, ExportOptions(offline=True))
    assert "\n" not in str(caught.value)
    assert not output.exists()


def weights(folder: Path, part: str = "transformer") -> Path:
    return next((folder / part).glob("*.safetensors"))


def damage_weights(folder: Path) -> None:
    path = weights(folder)
    path.write_bytes(path.read_bytes()[:-1000])


def drop_tensor(folder: Path) -> None:
    path = weights(folder, "text_encoder")
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def changed(file: str, **values: object) -> Change:
    """Change values of a JSON file."""

    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


CONFIG, INDEX = "transformer/config.json", "model_index.json"
# Of one damage to a tokenizer the library panics.
PANIC = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage_weights, r"transformer/.*\.safetensors is cut short .* download it again"),
        (lambda folder: weights(folder).unlink(), r"holds no \.safetensors"),
        (
            lambda folder: weights(folder).rename(weights(folder).with_suffix(".bin")),
            "pickled weights are never loaded",
        ),
        (drop_tensor, r"text_encoder lacks 1 of .*model\.layers\.1\.mlp\.up_proj\.weight"),
        (changed(CONFIG, num_attention_heads=4), "transformer: tensor .* has shape"),
        (changed(CONFIG, num_layers=10**9), "num_layers is 1000000000, expected"),
        (changed(CONFIG, num_layers=1), "no place for, such as transformer_blocks.1"),
        (changed(CONFIG, num_layers="two"), "num_layers is two, expected"),
        (lambda folder: (folder / CONFIG).write_text("{"), r"config\.json cannot be read as JSON"),
        (
            changed("rism.json", text_encoder_out_layers=[1, 2]),
            "expects prompt embeddings of width 48.* give 32",
        ),
        (
            changed("rism.json", text_encoder_out_layers=[1, 2, 9]),
            r"hidden states \[1, 2, 9\].* has 5 blocks",
        ),
        (
            changed("tokenizer/tokenizer.json", normalizer=PANIC),
            "tokenizer holds no Qwen tokenizer",
        ),
    ],
)
def test_a_broken_checkpoint(copy: Path, tmp_path: Path, change: Change, message: str) -> None:
    change(copy)
    refuse(copy, CheckpointError, message, tmp_path / "b")


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ("Flux2KleinKVPipeline", "attend only to themselves"),
        ("StableDiffusionPipeline", "is a StableDiffusionPipeline, expected one of"),
    ],
)
def test_other_pipelines_are_refused_by_name(
    copy: Path, tmp_path: Path, pipeline: str, message: str
) -> None:
    changed(INDEX, _class_name=pipeline)(copy)
    refuse(copy, UnsupportedModelError, message, tmp_path / "b")
    hub_id = "black-forest-labs/FLUX.2-klein-9b-kv"
    refuse(hub_id, UnsupportedModelError, "attend only to themselves", tmp_path / "b")


def test_what_is_no_model(tmp_path: Path) -> None:
    refuse("klein-Q4_K.gguf", CheckpointError, "is GGUF, .* BF16 or FP16 release", tmp_path / "b")
    refuse("nothing", CheckpointError, "no model 'nothing': expected one of mini", tmp_path / "b")
    refuse(tmp_path, CheckpointError, r"model_index\.json is missing", tmp_path / "b")
    refuse(
        "nobody/nothing-at-all", CheckpointError, "cannot be had from the model hub", tmp_path / "b"
    )
    with pytest.raises(CheckpointError, match="cannot be had from the model hub"):
        find_checkpoint("nobody/nothing-at-all")


def test_what_lies_beside_weights_is_passed_over(copy: Path) -> None:
    before, tensors = content_digest([copy], Event()), set(open_folder(copy / "transformer"))
    for name in ("transformer/._a.safetensors", "__MACOSX/model_index.json", ".cache/a.json"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes(b"\0\5\x16\7")
    (copy / "transformer" / "b.safetensors").touch()
    (copy / "transformer" / "c.safetensors.index.json").touch()
    assert set(open_folder(copy / "transformer")) == tensors
    assert content_digest([copy], Event()) == before
    with pytest.raises(
        CheckpointError, match=r"metadata that macOS keeps about one: give a\.safet"
    ):
        read_headers(copy / "transformer" / "._a.safetensors")


@pytest.fixture
def hub(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with a checkpoint in it, links to its files; itself behind a link."""
    repository = tmp_path / "disk" / "models--nobody--tiny"
    snapshot = repository / "snapshots" / ("a" * 40)
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    for number, file in enumerate(f for f in sorted(checkpoint.rglob("*")) if f.is_file()):
        blob, place = repository / "blobs" / str(number), snapshot / file.relative_to(checkpoint)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        place.symlink_to(os.path.relpath(blob, place.parent))
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models--nobody--tiny" / "snapshots" / snapshot.name


def test_the_hubs_cache(hub: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # read when the library is imported
    found, folder = find_checkpoint("nobody/tiny"), find_checkpoint(str(hub))
    assert (found.name, found.source, found.revision) == ("tiny", "hub:nobody/tiny", "a" * 40)
    assert (folder.name, folder.source) == ("tiny", "folder")
    for each in (found, folder):
        assert set(open_folder(each.folder / "vae")) == set(open_folder(checkpoint / "vae"))
        assert content_digest(each.folders, Event()) == content_digest([checkpoint], Event())


def test_a_part_that_is_a_link_counts(checkpoint: Path, tmp_path: Path) -> None:
    for part in checkpoint.iterdir():
        (tmp_path / part.name).symlink_to(part)
    assert content_digest([tmp_path], Event()) == content_digest([checkpoint], Event())


def test_a_folder_named_like_a_model(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").mkdir()
    assert find_checkpoint("mini").source == "built-in"
    (tmp_path / "mini").rmdir()
    for name in ("mini", "step1x"):
        copy.rename(tmp_path / name)
        with pytest.raises(CheckpointError, match=rf"write \./{name} for the folder, or call it"):
            find_checkpoint(name, offline=True)
        assert find_checkpoint(f"./{name}").source == "folder"
        (tmp_path / name).rename(copy)
    copy.rename(tmp_path / "step1x")
    with pytest.raises(CheckpointError, match=r"write \./step1x for the folder"):
        find_language_model("step1x", offline=True)
