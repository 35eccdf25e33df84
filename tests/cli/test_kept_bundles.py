"""Bundles by hub id, from a cache in the hub's layout; the folder of kept bundles."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from rism.cli.console import Console
from rism.cli.kept_bundles import exported_bundle
from rism.runtime.bundle.reader import Bundle, resolve_bundle
from rism.runtime.errors import BundleError, RismError
from tests.cli.conftest import invoke
from tests.paths import MINI

pytest.importorskip("huggingface_hub")
COMMIT = "c" * 40
KEPT = f"someone--mini-{COMMIT[:12]}"


@pytest.fixture(autouse=True)
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """someone/mini in an offline cache of the hub: links from names to blobs."""
    repository = tmp_path / "hub" / "models--someone--mini"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for file in MINI.iterdir():
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return snapshot


@pytest.mark.parametrize("name", ["someone/mini", f"someone/mini@{COMMIT}", "someone/mini@main"])
def test_a_hub_id_is_a_bundle_of_plain_files(name: str) -> None:
    folder = resolve_bundle(name)
    assert folder.name == KEPT
    assert Bundle.open(folder).digest == Bundle.open(MINI).digest
    assert resolve_bundle(name) == folder  # found again


def test_a_folder_wins_over_a_hub_id(tmp_path: Path) -> None:
    (tmp_path / "someone" / "mini").mkdir(parents=True)
    assert resolve_bundle("someone/mini") == Path("someone/mini")
    with pytest.raises(BundleError, match="no bundle 'someone/other'"):
        resolve_bundle("someone/other")  # beside folders that are here a slip, not a hub id


def test_what_the_cache_lacks_is_not_asked_for_offline() -> None:
    with pytest.raises(BundleError, match="cannot be had from the model hub"):
        resolve_bundle("someone/else")


def test_a_link_out_of_the_hubs_cache_is_refused(snapshot: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes((MINI / "noise.f32").read_bytes())
    (snapshot / "noise.f32").unlink()
    (snapshot / "noise.f32").symlink_to(tmp_path / "secret")
    with pytest.raises(BundleError, match="leads out of the hub's cache"):
        resolve_bundle("someone/mini")
    assert not list((tmp_path / "cache").rglob("manifest.json"))


def test_kept_bundles_are_listed_and_removed(snapshot: Path) -> None:
    folder = resolve_bundle("someone/mini")
    assert invoke("bundles").stdout.startswith(KEPT)
    assert "no bundle '../cache'" in invoke("bundles", "--remove", "../cache", code=1).stderr
    invoke("bundles", "--remove", KEPT)
    assert not folder.exists() and snapshot.is_dir()
    assert invoke("bundles").stdout.startswith("no bundles in ")


def test_an_exported_bundle_is_found_again_without_the_exporter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = tmp_path / "cache" / "rism" / "bundles" / "flux2-klein-4b-bf16-scores-abc123"
    shutil.copytree(MINI, kept)
    monkeypatch.setattr("rism.cli.kept_bundles.needs_extra", None)
    wish: dict[str, Any] = {"precision": "bf16", "yes": False, "console": Console(quiet=True)}
    assert exported_bundle("flux2-klein-4b", capture="scores", **wish) == kept
    with pytest.raises(TypeError):  # another one would need the exporter
        exported_bundle("flux2-klein-4b", capture="vectors", **wish)


def test_gigabytes_are_asked_for_before_an_export(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = pytest.importorskip("rism.export")
    called: list[Path] = []
    monkeypatch.setattr(
        exporter, "export_bundle", lambda _, folder, *__, **___: called.append(folder)
    )
    wish: dict[str, Any] = {"precision": None, "capture": None, "console": Console(quiet=True)}
    exported_bundle("mini", yes=False, **wish)
    monkeypatch.setattr("rism.cli.kept_bundles._ASK_ABOVE_BYTES", 1)
    with pytest.raises(RismError, match="add --yes"):
        exported_bundle("mini", yes=False, **wish)
    assert len(called) == 1
    exported_bundle("mini", yes=True, **wish)
    names = [folder.name.rpartition("-")[0] for folder in called]
    assert names == ["mini-published-vectors"] * 2
