"""Plans of an export without PyTorch, from headers and from the hub's list of files."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi
from safetensors import safe_open

from rism.export.errors import CheckpointError
from rism.export.families.find import BUILT_IN
from rism.export.plan.header_plan import plan_from_headers
from rism.runtime.errors import OutputError


def test_headers_say_what_the_library_reads(tmp_path: Path) -> None:
    plan = plan_from_headers("mini", tmp_path / "b", precision="fp16")
    assert [part.name for part in plan.parts] == ["transformer", "text_encoder", "vae"]
    for part in plan.parts:
        [file] = (BUILT_IN["mini"] / part.name).glob("*.safetensors")
        with safe_open(file, framework="np") as stored:
            keys = list(stored.keys())
            numbers = sum(math.prod(stored.get_slice(key).get_shape()) for key in keys)
        assert (part.parameters, part.nbytes) == (numbers, file.stat().st_size)
        assert part.written("fp16") == 2 * numbers
    assert plan.disk_bytes == sum(2 * (part.parameters or 0) for part in plan.parts)
    assert plan.blocks == "2 + 6 blocks"
    assert "memory       not known" in plan.table()
    plan.check(tmp_path / "b")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (bytes(8), "a header of 0 bytes"),
        ((10**12).to_bytes(8, "little") + b"{}", "a header of 1000000000000 bytes"),
        ((2).to_bytes(8, "little") + b"[]", "no attribute"),
        ((9).to_bytes(8, "little") + b'{"a": {}}', "shape"),
        ((20).to_bytes(8, "little") + b'{"a": {"shape":[-1]}}'[:20], "Expecting"),
        ((21).to_bytes(8, "little") + b'{"a": {"shape":[-1]}}', "a shape that is none"),
    ],
)
def test_damaged_headers_are_one_clear_error(data: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer/w.safetensors").write_bytes(data + b" " * 8)
    with pytest.raises(CheckpointError, match="is no safetensors file") as raised:
        plan_from_headers(str(tmp_path), tmp_path / "b")
    assert why in str(raised.value)


def test_the_hubs_list_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step1X-Edit in its makers' layout: three files of two repositories, nothing downloaded."""
    listed = {
        "stepfun-ai/Step1X-Edit": {
            "step1x-edit-i1258.safetensors": 24_900_000_000,
            "step1x-edit-v1p1-official.safetensors": 24_900_000_000,
            "vae.safetensors": 335_000_000,
        },
        "Qwen/Qwen2.5-VL-7B-Instruct": {"a.safetensors": 9_000_000_000, "b.safetensors": 7 * 10**9},
    }

    def model_info(self: HfApi, repository: str, **_: object) -> object:
        files = [SimpleNamespace(rfilename=k, size=v) for k, v in listed[repository].items()]
        return SimpleNamespace(siblings=files, sha="0" * 40)

    monkeypatch.setattr(HfApi, "model_info", model_info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    monkeypatch.setattr(
        "shutil.disk_usage", lambda _: SimpleNamespace(free=40_000_000_000, total=1, used=1)
    )
    plan = plan_from_headers("step1x", tmp_path / "b")
    found = {part.name: part.nbytes for part in plan.parts}
    assert found == {
        "transformer": 24_900_000_000,
        "text_encoder": 16_000_000_000,
        "vae": 335_000_000,
    }
    with pytest.raises(OutputError, match=r"needs at most 41\.2 GB, its disk has 40\.0 GB free"):
        plan.check(tmp_path / "b")


def test_a_folder_without_weights_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match="has no safetensors of a transformer"):
        plan_from_headers(str(tmp_path), tmp_path / "b")
