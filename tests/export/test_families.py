"""A family registers itself in one place, and every command works with its models."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rism.export import UnsupportedModelError, families
from rism.export.families.find import find_checkpoint, published_models
from tests.cli.conftest import invoke
from tests.export.dummy_family import FAMILY
from tests.export.dummy_family.model import make_dummy
from tests.paths import STREET


def rism(*arguments: str | Path, code: int = 0) -> str:
    return invoke(*arguments, code=code).output


def test_a_new_family_is_exported_run_and_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, bundle = make_dummy(tmp_path / "tiny-dummy"), tmp_path / "bundle"
    assert "expected one of: Flux2KleinPipeline" in rism(
        "export", "--model", checkpoint, "-o", bundle, code=1
    )
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, FAMILY))
    shown = rism("export", "--model", checkpoint, "-o", bundle)
    assert all(words in shown for words in ("transformer.vectors", "propagated_vectors", "wrote"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert (manifest["model"]["family"], manifest["model"]["name"]) == ("dummy", "tiny-dummy")
    cpu = ("--bundle", bundle, "--provider", "cpu")
    rism("run", STREET, "the van", *cpu, "-o", f"{tmp_path}/masks/")
    assert [path.name for path in (tmp_path / "masks").glob("*.mask.png")]
    rism("eval", "scenes", "--count", "2", *cpu, "-o", tmp_path / "scores")
    result = json.loads((tmp_path / "scores/result.json").read_text())
    assert result["metrics"]["full"]["n"] == 2
    assert "family Dummy cannot be ablated" in rism(
        "ablate", "scenes", "--model", checkpoint, "-o", tmp_path / "ablation", code=1
    )


def test_what_a_family_declares_is_known_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, FAMILY))
    assert published_models()["dummy-edit"].repository == "nobody/Dummy-Edit"
    assert "dummy-edit" in rism("export", "--model", "none", "-o", tmp_path / "b", code=1)
    assert "dummy-edit" not in rism("refine", STREET, "a", "--model", "none", "-o", "b", code=1)
    with pytest.raises(UnsupportedModelError, match="some/dummy-fast cannot be used: it has no"):
        find_checkpoint("some/dummy-fast")
    (tmp_path / "my-dummy.safetensors").write_bytes(b"0")
    assert find_checkpoint(str(tmp_path)).transformer_file == tmp_path / "my-dummy.safetensors"


def test_the_registry_is_read_without_pytorch() -> None:
    code = "import sys, rism.export.families.find; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
