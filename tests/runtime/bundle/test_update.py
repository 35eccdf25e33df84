"""Changing a bundle: all of it or nothing, whoever is killed in between."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from rism.runtime.bundle import reader as bundle_module
from rism.runtime.bundle import update
from rism.runtime.bundle.reader import Bundle
from rism.runtime.bundle.update import mend_bundle, update_bundle
from rism.runtime.errors import BundleError, InputError, OutputError, RismError
from tests.paths import ROOT, contents


def note(data: dict[str, Any]) -> None:
    data["note"] = "amended"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    file = tmp_path / "new.tmp-1"
    file.write_bytes(b"plan of a graph")
    return file


def test_files_come_with_the_manifest(tiny_bundle: Path, new: Path) -> None:
    seen: list[dict[str, Any]] = []

    def change(data: dict[str, Any]) -> None:
        seen.append(data["files"]["engines/a/b.plan"])
        note(data)

    update_bundle(tiny_bundle, change, files={"engines/a/b.plan": new})
    assert seen[0]["size"] == 15
    bundle = Bundle.open(tiny_bundle)
    assert bundle.manifest.files["engines/a/b.plan"].sha256 == seen[0]["sha256"]
    assert bundle.file("engines/a/b.plan").read_bytes() == b"plan of a graph"
    assert json.loads((tiny_bundle / "manifest.json").read_text())["note"] == "amended"
    assert not new.exists()
    assert not [name for name in os.listdir(tiny_bundle) if name.startswith(".")]


def test_what_is_removed_goes_last_and_leaves_no_folder(tiny_bundle: Path, new: Path) -> None:
    update_bundle(tiny_bundle, note, files={"engines/a/b.plan": new})
    update_bundle(tiny_bundle, note, remove=["engines/a/b.plan", "never/was.plan"])
    assert "engines/a/b.plan" not in Bundle.open(tiny_bundle).manifest.files
    assert not (tiny_bundle / "engines").exists()


def test_a_file_is_replaced(tiny_bundle: Path, tmp_path: Path, new: Path) -> None:
    update_bundle(tiny_bundle, note, files={"selftest.bin": new})
    second = tmp_path / "second"
    second.write_bytes(b"other")
    update_bundle(tiny_bundle, note, files={"selftest.bin": second})
    assert Bundle.open(tiny_bundle).file("selftest.bin").read_bytes() == b"other"


def _raise(data: dict[str, Any]) -> None:
    raise OutputError("the disk is gone")


@pytest.mark.parametrize(
    ("change", "files", "error", "says"),
    [
        (
            lambda d: d["method"].update(tau=7),
            {"a.plan": None},
            BundleError,
            "'method.tau' is 7, expected a number",
        ),
        (_raise, {"a.plan": None}, OutputError, "the disk is gone"),
        (note, {"../a.plan": None}, InputError, "'../a.plan' cannot be a file of a bundle"),
        (note, {"manifest.json": None}, InputError, "'manifest.json' cannot be a file of a"),
        (note, {"a.plan": "nowhere"}, InputError, "nowhere' is not there, expected a finished"),
        (lambda d: d.update(note="x" * 2**20), {}, BundleError, "would be larger than 1 MiB"),
    ],
)
def test_a_refusal_changes_nothing(
    tiny_bundle: Path, new: Path, change: Any, files: Any, error: type[RismError], says: str
) -> None:
    before = contents(tiny_bundle)
    given = {name: new if file is None else new.parent / file for name, file in files.items()}
    with pytest.raises(error) as refusal:
        update_bundle(tiny_bundle, change, files=given)
    assert says in str(refusal.value)
    assert contents(tiny_bundle) == before
    assert new.exists()


def test_no_file_through_a_link(tiny_bundle: Path, new: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tiny_bundle / "engines").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"'engines/a.plan' is a link or behind one"):
        update_bundle(tiny_bundle, note, files={"engines/a.plan": new})
    assert not list((tmp_path / "elsewhere").iterdir())


# Dies for good at the n-th file that takes its name, as a killed process does.
KILLED = """
import os, sys
from pathlib import Path
from rism.runtime.bundle.update import update_bundle
left, real = int(sys.argv[2]), Path.replace
def replace(self, target):
    global left
    left -= 1
    if left < 0:
        os._exit(9)
    return real(self, target)
Path.replace = replace
folder = Path(sys.argv[1])
names = ["noise.f32", "engines/a/b.plan"]
files = {name: folder.parent / f"new-{at}" for at, name in enumerate(names)}
for file in files.values():
    file.write_bytes(bytes(3600))
update_bundle(folder, lambda data: data.update(killed=True), files=files)
os._exit(9)
"""


def killed(folder: Path, moves: int) -> None:
    command = [sys.executable, "-c", KILLED, folder, str(moves)]
    run = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert run.returncode == 9


@pytest.mark.parametrize("moves", [0, 2, 3])
def test_killed_in_between(tiny_bundle: Path, moves: int) -> None:
    """The next change finds the old bundle, or, once the manifest was there, the new one."""
    before = contents(tiny_bundle)
    killed(tiny_bundle, moves)
    update_bundle(tiny_bundle, note)
    found = contents(Bundle.open(tiny_bundle).path)
    data = json.loads(found.pop("manifest.json"))
    if moves == 3:  # both files and the manifest had their names
        assert data["killed"] is True
        assert found.pop("engines/a/b.plan") == found["noise.f32"] == bytes(3600)
    else:
        assert "killed" not in data
        del before["manifest.json"]
        assert found == before


def test_who_opens_it_then_is_told(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(tiny_bundle)
    killed(tiny_bundle, 2)
    monkeypatch.setattr(bundle_module, "_PATIENCE_S", 0.1)
    with pytest.raises(BundleError) as error:
        Bundle.open(tiny_bundle)
    assert "'engines/a/b.plan' is not listed in manifest.json" in str(error.value)
    assert str(error.value).endswith(
        f"a change of this bundle was interrupted, rism doctor {tiny_bundle} undoes or finishes it"
    )
    assert mend_bundle(tiny_bundle) and not mend_bundle(tiny_bundle)
    assert contents(Bundle.open(tiny_bundle).path) == before


def test_a_reader_waits_for_a_change_to_end(tiny_bundle: Path, new: Path) -> None:
    """Opened while the files have their names, and the manifest not yet."""
    real, opened = Path.replace, list[Bundle]()

    def replace(source: Path, target: Path) -> Path:
        if target.name == "manifest.json":
            reader.start()
            reader.join(0.3)
            assert reader.is_alive() and not opened
        return real(source, target)

    reader = threading.Thread(target=lambda: opened.append(Bundle.open(tiny_bundle)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        update_bundle(tiny_bundle, note, files={"engines/a/b.plan": new})
    reader.join()
    assert "engines/a/b.plan" in opened[0].manifest.files


def test_one_writer_at_a_time(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "PATIENCE_S", 0.1)

    def change(data: dict[str, Any]) -> None:
        with pytest.raises(OutputError, match=r"is being changed by another command: wait"):
            update_bundle(tiny_bundle, note)
        data["outer"] = True

    update_bundle(tiny_bundle, change)
    data = json.loads((tiny_bundle / "manifest.json").read_text())
    assert data["outer"] is True and "note" not in data


def test_a_folder_that_cannot_be_written(tiny_bundle: Path, new: Path) -> None:
    def full(source: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    before = contents(tiny_bundle)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OutputError, match=r"cannot be changed \(No space left on device\)"):
            update_bundle(tiny_bundle, note, files={"engines/a/b.plan": new})
    assert contents(tiny_bundle) == before


def test_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no manifest.json"):
        update_bundle(tmp_path, note)
    with pytest.raises(BundleError, match=r"is not a folder"):
        update_bundle(tmp_path / "none", note)
