"""What an export says before it begins: sizes, disk, memory; and a hub that is not there."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.synthetic.flux2_checkpoint import SIZES, write_configuration
from rism.export import (
    CheckpointError,
    ExportError,
    ExportOptions,
    ExportReport,
    export_bundle,
    plan_export,
)
from rism.export.plan import checkpoint_plan
from rism.runtime import InputError, OutputError
from tests.cli.conftest import invoke
from tests.export.conftest import COMMIT

CONFIDENCE = dict.fromkeys(("separability", "concentration", "agreement", "bias"), 1.0)


def test_the_plan_is_what_happens(checkpoint: Path, exported: ExportReport) -> None:
    planned = plan_export(str(checkpoint), exported.path.parent / "new")
    for part in planned.parts:
        written = (exported.path / f"{part.name}.weights").stat().st_size
        # Small weights are in the graph, and large ones begin on a page.
        assert 0.5 * part.write_bytes < written < part.write_bytes + 1_000_000
    assert planned.parity == "full"
    assert planned.blocks == "2 + 3 blocks"


def test_a_dry_run_prints_sizes_and_writes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    command = ("export", "--model", checkpoint, "-o", tmp_path / "b", "--dry-run")
    shown = invoke(*command, "--precision", "bf16").stdout
    for text in ("text_encoder", "vae_encoder", "transformer", "bf16", "disk", "memory", "free"):
        assert text in shown
    assert list(tmp_path.iterdir()) == []


def test_a_published_size_is_planned_from_its_configuration(
    tmp_path: Path, hub_cache: Callable[[str], Path]
) -> None:
    """The numbers of FLUX.2-klein 9B, without its weights."""
    write_configuration(hub_cache("black-forest-labs/FLUX.2-klein-9B"), SIZES["9b"])
    command = ("export", "--model", "flux2-klein-9b", "-o", tmp_path / "b", "--offline")
    shown = invoke(*command, "--dry-run").stdout
    assert "FLUX.2-klein-9B (flux2-klein) from hub:black-forest-labs/" in shown
    assert all(text in shown for text in ("8 + 24 blocks", "17.2 GB", "11.7 GB"))
    # Without the dry run the weights are asked for, and they are not there.
    failed = invoke(*command, code=1).stderr
    assert "no .safetensors file" in failed or "needs" in failed
    assert not (tmp_path / "b").exists()


def test_offline_finds_what_was_downloaded(
    checkpoint: Path, tmp_path: Path, hub_cache: Callable[[str], Path]
) -> None:
    shutil.copytree(checkpoint, hub_cache("someone/tiny-klein"))
    flags = ("-o", tmp_path / "b", "--dry-run", "--offline")
    command = ("export", "--model", "someone/tiny-klein", *flags)
    assert "hub:someone/tiny-klein" in invoke(*command).stdout
    invoke(*command, "--revision", COMMIT)
    other = invoke(*command, "--revision", "v2", code=1).stderr
    assert other.count("\n") == 1 and "cannot be had from the model hub" in other


def test_not_enough_disk(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage(10**12, 10**12, 1000)  # type: ignore[attr-defined]
    monkeypatch.setattr(checkpoint_plan.shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(OutputError, match=r"b needs .* its disk has 1\.0 kB free"):
        export_bundle(str(checkpoint), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_not_enough_memory(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_plan, "free_memory", lambda: 10**8)
    with pytest.raises(ExportError, match=r"of memory, 100\.0 MB are free: close other programs"):
        export_bundle(str(checkpoint), tmp_path / "b")
    with pytest.raises(ExportError, match="ask for --parity blocks"):
        export_bundle(str(checkpoint), tmp_path / "b", ExportOptions(parity="full"))
    assert list(tmp_path.iterdir()) == []


def test_the_gate_is_chosen_by_memory(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = plan_export(str(checkpoint), tmp_path / "b")
    assert small.parity == "full"
    monkeypatch.setattr(checkpoint_plan, "free_memory", lambda: 2 * small.memory_bytes - 2)
    assert plan_export(str(checkpoint), tmp_path / "b").parity == "blocks"


def test_options_that_are_none(checkpoint: Path, tmp_path: Path) -> None:
    good = ExportOptions()
    for bad, message in (
        (replace(good, precision="int3"), "precision int3 is not known, expected some of fp32"),
        (replace(good, parity="none"), "parity none is not known"),
        (replace(good, captures=()), "capture nothing is not known"),
        (replace(good, feature_site="middle"), "feature site middle is not known"),
        (replace(good, size_level=3), "size level is 3, expected pixels from 8 to 8192"),
        (replace(good, size_level=512, sizes=((64, 64),)), "exclude each other"),
        (replace(good, template="remove it"), "expected text with {expression}"),
        (replace(good, sizes=((50, 64),)), "multiple"),
    ):
        with pytest.raises(InputError, match=message):
            export_bundle(str(checkpoint), tmp_path / "b", bad)
    command = ("export", "--model", checkpoint, "-o", tmp_path / "b", "--sizes", "1024")
    assert "expected WIDTHxHEIGHT, such as 1024x768" in invoke(*command, code=2).stderr


def test_a_folder_without_its_text_encoder(checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy, ignore=shutil.ignore_patterns("text_encoder"))
    with pytest.raises(CheckpointError, match="text_encoder is missing"):
        plan_export(str(copy), tmp_path / "b")
    (copy / "rism.json").write_text(json.dumps({"colour": "red"}))
    shutil.copytree(checkpoint / "text_encoder", copy / "text_encoder")
    with pytest.raises(CheckpointError, match=r"rism\.json has unknown keys \['colour'\]"):
        plan_export(str(copy), tmp_path / "b")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("size_level", "large", "size_level is large, expected a whole number from 8 to 8192"),
        ("size_level", True, "size_level is True"),
        ("tau", 1.5, "tau is 1.5, expected a number from 0"),
        ("text_encoder_out_layers", [1, -2], r"expected a list of block numbers"),
        ("feature_block", 7, "feature_block is 7, the transformer has 5 blocks"),
        ("precision", "fp8", "precision is fp8, expected one of fp32, bf16, fp16"),
        ("name", "a\nb", "name is a b, expected printable text"),
        ("confidence", {"bias": 1.0}, "expected an object of the numbers separability, concen"),
        ("confidence", {**CONFIDENCE, "threshold": 1.5}, "confidence is .* expected an object"),
        ("scope", {"nouns": ["Car"]}, "expected an object of nouns, words in lo"),
        ("resize", ["always"], "resize is .* expected always or shrink"),
    ],
)
def test_settings_that_cannot_be(
    checkpoint: Path, tmp_path: Path, key: str, value: object, message: str
) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    settings = json.loads((copy / "rism.json").read_text())
    (copy / "rism.json").write_text(json.dumps(settings | {key: value}))
    with pytest.raises(CheckpointError, match=message) as caught:
        plan_export(str(copy), tmp_path / "b")
    assert "\n" not in str(caught.value)
