"""Broken, foreign and hostile checkpoints: one line each, before any long work."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from threading import Event

import pytest
from huggingface_hub import constants

from rism.export import CheckpointError, ExportOptions, UnsupportedModelError, export_bundle
from rism.export.checkpoint.locate import content_digest
from rism.export.checkpoint.safetensors_store import open_folder, read_headers
from rism.export.families.find import find_checkpoint
from rism.export.refiner.qwen_files import find_language_model


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def test_a_hub_that_does_not_answer_or_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be had from the model hub") as caught:
        export_bundle("nobody/nothing-at-all", tmp_path / "b")
    assert "\n" not in str(caught.value)


def refuse(folder: Path | str, kind: type[Exception], match: str, output: Path) -> None:
    with pytest.raises(kind, match=match) as caught:
        export_bundle(str(folder), output, ExportOptions(offline=True))
    assert "\n" not in str(caught.value)
    assert not output.exists()


def weights(folder: Path, part: str = "transformer") -> Path:
    return next((folder / part).glob("*.safetensors"))


def test_truncated_weights(copy: Path, tmp_path: Path) -> None:
    path = weights(copy)
    path.write_bytes(path.read_bytes()[:-1000])
    refuse(
        copy,
        CheckpointError,
        r"transformer/.*\.safetensors is cut short .* download it again",
        tmp_path / "b",
    )


def test_missing_weights_are_not_made_up(copy: Path, tmp_path: Path) -> None:
    weights(copy).unlink()
    refuse(copy, CheckpointError, r"holds no \.safetensors", tmp_path / "b")


def test_a_missing_tensor_is_named(copy: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = weights(copy, "text_encoder")
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    refuse(
        copy,
        CheckpointError,
        r"text_encoder lacks 1 of .*model\.layers\.1\.mlp\.up_proj\.weight",
        tmp_path / "b",
    )


def test_a_wrong_config(copy: Path, tmp_path: Path) -> None:
    path = copy / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_attention_heads": 4}))
    refuse(copy, CheckpointError, r"transformer: tensor .* has shape", tmp_path / "b")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_layers": 10**9}))
    refuse(copy, CheckpointError, "num_layers is 1000000000, expected", tmp_path / "b")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_layers": 1}))
    refuse(copy, CheckpointError, "no place for, such as transformer_blocks.1", tmp_path / "b")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_layers": "two"}))
    refuse(copy, CheckpointError, "num_layers is two, expected", tmp_path / "b")
    path.write_text("{")
    refuse(copy, CheckpointError, r"config\.json cannot be read as JSON", tmp_path / "b")


def test_parts_of_different_models(copy: Path, tmp_path: Path) -> None:
    path = copy / "rism.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"text_encoder_out_layers": [1, 2]}))
    refuse(copy, CheckpointError, "expects prompt embeddings of width 48.* give 32", tmp_path / "b")


def test_a_hidden_state_that_is_not_there(copy: Path, tmp_path: Path) -> None:
    path = copy / "rism.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"text_encoder_out_layers": [1, 2, 9]})
    )
    refuse(copy, CheckpointError, r"hidden states \[1, 2, 9\].* has 5 blocks", tmp_path / "b")


def test_pickled_weights_are_never_read(copy: Path, tmp_path: Path) -> None:
    path = weights(copy)
    path.rename(path.with_suffix(".bin"))
    refuse(copy, CheckpointError, "pickled weights are never loaded", tmp_path / "b")


def test_key_value_cached_models_are_refused_with_the_reason(copy: Path, tmp_path: Path) -> None:
    path = copy / "model_index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"_class_name": "Flux2KleinKVPipeline"}))
    refuse(copy, UnsupportedModelError, "attend only to themselves", tmp_path / "b")
    hub_id = "black-forest-labs/FLUX.2-klein-9b-kv"
    refuse(hub_id, UnsupportedModelError, "attend only to themselves", tmp_path / "b")


def test_other_pipelines_are_refused_by_name(copy: Path, tmp_path: Path) -> None:
    path = copy / "model_index.json"
    path.write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    refuse(
        copy, UnsupportedModelError, "is a StableDiffusionPipeline, expected one of", tmp_path / "b"
    )


def test_what_is_no_model(tmp_path: Path) -> None:
    refuse("nothing", CheckpointError, "no model 'nothing': expected one of mini", tmp_path / "b")
    refuse(tmp_path, CheckpointError, r"model_index\.json is missing", tmp_path / "b")
    refuse(
        "nobody/nothing-at-all", CheckpointError, "cannot be had from the model hub", tmp_path / "b"
    )


def test_what_lies_beside_weights_is_passed_over(copy: Path) -> None:
    before, tensors = content_digest([copy], Event()), set(open_folder(copy / "transformer"))
    for name in ("transformer/._a.safetensors", "__MACOSX/model_index.json", ".cache/a.json"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes(b"\0\5\x16\7")
    (copy / "transformer" / "b.safetensors").touch()
    (copy / "transformer" / "c.safetensors.index.json").touch()
    assert set(open_folder(copy / "transformer")) == tensors
    assert content_digest([copy], Event()) == before
    with pytest.raises(CheckpointError, match=r"macOS keeps notes about one in it: give a\.safet"):
        read_headers(copy / "transformer" / "._a.safetensors")


def test_a_damaged_tokenizer(copy: Path, tmp_path: Path) -> None:
    """Of one damage the library panics."""
    file = copy / "tokenizer" / "tokenizer.json"
    panics = {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | panics))
    refuse(copy, CheckpointError, "tokenizer holds no Qwen tokenizer", tmp_path / "b")


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
