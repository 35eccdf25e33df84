import os
import threading
from pathlib import Path

import pytest

from rism.runtime import atomic_write
from rism.runtime.atomic_write import write_atomically
from rism.runtime.errors import OutputError


def test_the_umask_and_an_older_files_permissions_count(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "new", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640
    (tmp_path / "new").chmod(0o604)
    write_atomically(tmp_path / "new", b"")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o604


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_stopped_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"old")

    def fail(_: int) -> None:
        raise stop

    monkeypatch.setattr(atomic_write.os, "fsync", fail)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]


def test_an_interrupt_while_the_file_is_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python runs the handler of a signal as the call that it interrupted returns.
    really_open = os.open

    def opened_then_interrupted(*arguments: object) -> int:
        os.close(really_open(*arguments))  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic_write.os, "open", opened_then_interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.png", b"new")
    assert os.listdir(tmp_path) == []


def test_a_link_keeps_pointing_where_it_did(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_pipe_is_written_to_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_atomically(pipe, b"data")
    reader.join(timeout=10)
    assert got == [b"data"]
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("missing/a.png", "No such file"),
        ("file/a.png", "Not a directory"),
        ("folder", "is a folder|Is a directory"),
        ("loop", "loop|symbolic link"),
        ("n" * 300, "too long"),
        ("/dev/full", "No space left"),
    ],
)
def test_places_that_cannot_be_written(tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OutputError, match=message):
        write_atomically(tmp_path / place, b"data")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "loop"]


def test_the_longest_name_still_has_a_neighbour(tmp_path: Path) -> None:
    write_atomically(tmp_path / ("é" * 127), b"data")
    assert len(os.listdir(tmp_path)) == 1


def test_a_link_is_replaced_where_asked(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"kept")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "dangling", "pipe", "new"):
        write_atomically(tmp_path / name, b"data", follow_links=False)
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_bytes() == b"data"
    assert (tmp_path / "target").read_bytes() == b"kept"
    assert sorted(os.listdir(tmp_path)) == ["dangling", "link", "new", "pipe", "target"]
