"""Broken, foreign and hostile checkpoints: one line each, before any long work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rism.export import CheckpointError, ExportOptions, UnsupportedModelError, export_bundle


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
