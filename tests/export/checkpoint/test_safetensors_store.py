"""Reading safetensors headers and runs of rows, and every way a file can be wrong."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rism.export import CheckpointError
from rism.export.checkpoint.safetensors_store import open_folder, read_headers

SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder of two shards and their index."""
    torch.manual_seed(0)
    tensors = {f"layer.{i}.weight": torch.randn(40, 3).bfloat16() for i in range(4)}
    places = {}
    for number, names in enumerate((list(tensors)[:2], list(tensors)[2:]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, tmp_path / file)
        places |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": places}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def listed(tensor: str, file: str) -> Callable[[Path], None]:
    """Change the index: it has a tensor in a file."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        index["weight_map"][tensor] = file
        path.write_text(json.dumps(index))

    return change


def test_shards_are_one_store(shards: Path) -> None:
    store = open_folder(shards)
    assert len(store) == 4
    tensor = store["layer.3.weight"]
    assert (tensor.shape, tensor.dtype, tensor.nbytes) == ((40, 3), torch.bfloat16, 240)
    assert tensor.file.name == "model-00002-of-00002.safetensors"


@pytest.mark.parametrize("nbytes", [1, 7, 60, 10_000])
def test_runs_of_rows_are_the_tensor(tmp_path: Path, nbytes: int) -> None:
    whole = torch.randn(37, 5)
    save_file({"a": whole}, tmp_path / "a.safetensors")
    stored = read_headers(tmp_path / "a.safetensors")["a"]
    runs = list(stored.chunks(nbytes))
    assert torch.equal(torch.cat(runs), whole)
    assert len(runs) == (1 if nbytes > 740 else -(-37 // max(1, nbytes // 20)))
    part = stored.rows(10, 30).rows(5, 15)
    assert torch.equal(part.read(), whole[15:25])
    assert torch.equal(torch.cat(list(part.chunks(nbytes))), whole[15:25])


def test_scalars_and_one_by_one_convolutions(tmp_path: Path) -> None:
    kernel = torch.randn(6, 4, 1, 1)
    save_file({"s": torch.tensor(3), "k": kernel}, tmp_path / "a.safetensors")
    headers = read_headers(tmp_path / "a.safetensors")
    assert headers["s"].read().item() == 3
    assert torch.equal(headers["k"].squeezed().read(), kernel[..., 0, 0])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / SHARD).unlink(),
            "lacks 1 of 2 shards, such as model-00001-of-00",
        ),
        (lambda folder: os.truncate(folder / SHARD, 300), r"model-00001-of-00002\..* is cut short"),
        (listed("layer.0.weight", "../../etc/model.safetensors"), "names files outside"),
        (listed("layer.9.weight", SHARD), r"has no tensor layer\.9\.weight"),
    ],
)
def test_damaged_shards(shards: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(shards)
    with pytest.raises(CheckpointError, match=message):
        open_folder(shards)


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": {"a": 1}}'])
def test_a_broken_index(shards: Path, content: str) -> None:
    (shards / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        open_folder(shards)


def test_eight_bit_weights_of_the_one_kind_that_is_published(tmp_path: Path) -> None:
    values = torch.linspace(-448, 448, 64).reshape(16, 4).to(torch.float8_e4m3fn)
    save_file({"a": values}, tmp_path / "a.safetensors")
    (stored,) = read_headers(tmp_path / "a.safetensors").values()
    assert torch.equal(stored.rows(3, 9).read().float(), values[3:9].float())
    save_file({"a": values.to(torch.float8_e5m2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"holds F8_E5M2 tensors, .* BF16 or FP16 release"):
        read_headers(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("name", "tool"),
    [
        ("a.weight.quant_state.bitsandbytes__nf4", ""),
        ("a.weight.absmax", "bitsandbytes"),
        ("a.weight_scale", "FP8 with scales"),
        ("a.scale_weight", "FP8 with scales"),
        ("a.qweight", "GPTQ or AWQ"),
    ],
)
def test_weights_in_few_bits_are_refused_by_name(tmp_path: Path, name: str, tool: str) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"a.weight": torch.zeros(4, 2, dtype=torch.uint8), name: torch.ones(4)}, file)
    with pytest.raises(CheckpointError, match=f"{tool}.*expected floats: give the BF16 or FP16"):
        read_headers(file)


def test_a_tensor_of_another_model_is_named(shards: Path) -> None:
    store = open_folder(shards)
    shapes = dict.fromkeys(store, (40, 3))
    store.expect(shapes)
    with pytest.raises(CheckpointError, match=r"lacks 1 of 5 tensors .* such as extra"):
        store.expect(shapes | {"extra": (1,)})
    store.expect(shapes | {"extra": (1,)}, optional=["extra"])
    with pytest.raises(
        CheckpointError, match=r"layer\.1\.weight has shape \[40, 3\], .* \[3, 40\]"
    ):
        store.expect(shapes | {"layer.1.weight": (3, 40)})
    del shapes["layer.2.weight"]
    with pytest.raises(CheckpointError, match=r"no place for, such as layer\.2\.weight"):
        store.expect(shapes)


def test_a_file_that_goes_away_is_an_error_of_one_line(shards: Path) -> None:
    stored = open_folder(shards)["layer.0.weight"]
    stored.file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read any more") as caught:
        stored.read()
    assert "\n" not in str(caught.value)
