"""A folder of pictures, one after the other and several at once: the same in every byte."""

import json
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rism.cli import delivery
from rism.runtime.engines import onnxruntime
from rism.runtime.engines.cpu_threads import cpu_count
from rism.runtime.errors import OutputError
from rism.runtime.image import loading
from rism.runtime.image.loading import load_image
from tests.cli.conftest import Run
from tests.paths import contents

# One thread for each picture either way: sums of another number of threads round differently.
SERIAL = ("--workers", "1", "--threads", "1")
AT_ONCE = ("--workers", "3", "--threads", "3")


@pytest.fixture
def folder(picture: Path, workplace: Path) -> Path:
    """Twelve pictures of several sizes; two are none, one is of no size for the model."""
    place = workplace / "in"
    place.mkdir()
    whole = picture.read_bytes()
    with Image.open(picture) as image:
        for number in range(9):
            turned = image.rotate(40 * number).resize((60 + 23 * number, 150 - 9 * number))
            turned.save(place / f"{number}.png")
    (place / "2b.png").write_bytes(whole[:200])
    (place / "5b.jpg").write_bytes(b"no picture")
    Image.new("RGB", (900, 10)).save(place / "long.png")
    return place


@pytest.fixture
def run_folder(run: Run, folder: Path) -> Run:
    """Run on the folder; three of its images fail."""
    return lambda *arguments, code=1: run("in", *arguments, code=code)


def without_times(text: str) -> list[dict[str, object]]:
    entries = json.loads(text)
    for entry in entries:
        entry.pop("timings_ms", None)
    return list(entries)


def test_the_same_in_every_byte(run_folder: Run, workplace: Path) -> None:
    def both(flags: tuple[str, ...]) -> tuple[object, ...]:
        asked = ("green", "the red", "--json", "--save", "all", "-o", "out/")
        shown = run_folder(*asked, *flags)
        files = contents(workplace / "out")
        for file in (workplace / "out").iterdir():
            file.unlink()
        return shown.stderr, without_times(shown.stdout), files

    serial, at_once = both(SERIAL), both(AT_ONCE)
    assert serial == at_once
    stderr, entries, files = serial
    assert isinstance(stderr, str) and isinstance(entries, list) and isinstance(files, dict)
    assert stderr.splitlines()[-1] == "error: 3 of 12 images failed, the others are written"
    assert [Path(entry["image"]).name for entry in entries if "error" in entry] == [
        "2b.png", "5b.jpg", "long.png",
    ]  # fmt: skip
    assert len(files) == 9 * (2 * 3 + 1)  # an overlay is one for both


@pytest.mark.parametrize("flags", [SERIAL, AT_ONCE])
def test_what_ends_a_run_ends_it_there(
    run_folder: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    real, written = delivery.write_atomically, []

    def write(path: Path, data: bytes) -> None:
        if len(written) == 3:
            raise OutputError(f"cannot write {path}: No space left on device")
        real(path, data)
        written.append(path.name)

    monkeypatch.setattr(delivery, "write_atomically", write)
    before = threading.active_count()
    shown = run_folder("green", "--save", "mask", "--json", "-o", "out/", *flags)
    assert shown.stderr.splitlines()[-1].endswith("3.green.mask.png: No space left on device")
    entries = json.loads(shown.stdout)
    assert [entry["image"] for entry in entries] == [
        f"in/{name}.png" for name in ("0", "1", "2", "2b", "3")
    ]
    assert entries[-1]["error"].endswith("left on device; 7 more images were not looked at")
    assert sorted(contents(workplace / "out")) == [f"{n}.green.mask.png" for n in range(3)]
    assert threading.active_count() == before


def test_a_large_bundle_is_run_once_at_a_time(
    run_folder: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "SMALL_BUNDLE_BYTES", 1)
    real, sessions = onnxruntime.open_session, []
    overlapped = threading.Event()

    class Watched:
        """A session that knows whether it is run twice at once."""

        def __init__(self, session: object) -> None:
            self._session = session
            self._running = threading.Lock()

        def run(self, *arguments: object) -> object:
            if not self._running.acquire(blocking=False):
                overlapped.set()
                return self._session.run(*arguments)  # type: ignore[attr-defined]
            try:
                return self._session.run(*arguments)  # type: ignore[attr-defined]
            finally:
                self._running.release()

        def __getattr__(self, name: str) -> object:
            return getattr(self._session, name)

    def session(file: Path, provider: str, device: int, threads: int, **options: object) -> object:
        sessions.append(threads)
        return Watched(real(file, provider, device, threads, **options))

    monkeypatch.setattr(onnxruntime, "open_session", session)
    run_folder("green", "-o", "out/", "--workers", "4")
    assert sessions == [cpu_count()] * 3
    assert not overlapped.is_set()


def test_pictures_at_once_share_the_threads(
    run_folder: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, given = onnxruntime.open_session, []

    def session(file: Path, provider: str, device: int, threads: int, **options: object) -> object:
        given.append(threads)
        return real(file, provider, device, threads, **options)

    monkeypatch.setattr(onnxruntime, "open_session", session)
    for flags, threads in (
        (("--threads", "5"), 1),  # four pictures at once, the most by default
        (("--threads", "5", "--workers", "2"), 2),
        (("--threads", "5", "--workers", "1"), 5),
        (("--threads", "1"), 1),
    ):
        given.clear()
        run_folder("green", "--json", *flags)
        assert set(given) == {threads}


def test_a_refiner_is_asked_about_one_picture_at_a_time(run_folder: Run, workplace: Path) -> None:
    (workplace / "counting_words.py").write_text(
        "import threading\nseen = []\n"
        "def count(instruction, image):\n"
        "    seen.append((threading.get_ident(), image.shape[1]))\n"
        "    return instruction\n"
    )
    asked = ("green", "--json", "--refiner", "counting_words:count")
    run_folder(*asked, "--threads", "4")
    import counting_words  # type: ignore[import-not-found]

    assert counting_words.seen == [(threading.get_ident(), 60 + 23 * n) for n in range(9)]
    refused = run_folder(*asked, "--workers", "2", code=2)
    assert refused.stderr == (
        "error: --refiner works on one image at a time, expected --workers 1 or none\n"
    )


def test_no_more_pictures_are_decoded_than_are_worked_on(
    run_folder: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Decoded(np.ndarray):
        __hash__ = object.__hash__  # type: ignore[assignment]

    alive: weakref.WeakSet[Decoded] = weakref.WeakSet()
    counts: list[int] = []

    def load(source: Path) -> np.ndarray:
        pixels = load_image(source).view(Decoded)
        alive.add(pixels)
        counts.append(len(alive))
        return pixels

    monkeypatch.setattr(loading, "load_image", load)
    for broken in ("2b.png", "5b.jpg", "long.png"):
        (workplace / "in" / broken).unlink()
    run_folder("green", "-o", "out/", *AT_ONCE, code=0)
    assert len(counts) == 9
    assert max(counts) <= 3


def test_heavy_pictures_wait_for_each_other(
    run_folder: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, overlapped = threading.Lock(), threading.Event()

    def load(source: Path) -> np.ndarray:
        if not running.acquire(blocking=False):
            overlapped.set()
            running.acquire()
        pixels = load_image(source)
        running.release()
        return pixels

    monkeypatch.setattr(loading, "load_image", load)
    monkeypatch.setattr(delivery, "_MOST_PIXELS_AT_ONCE", 100)
    for broken in ("2b.png", "5b.jpg"):  # which weigh nothing
        (workplace / "in" / broken).unlink()
    run_folder("green", "-o", "out/", *AT_ONCE)
    assert not overlapped.is_set()


def test_without_json_nothing_is_kept_of_a_picture(
    run_folder: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    monkeypatch.setattr(
        delivery._Records, "finish", lambda records: kept.append(len(records._kept))
    )
    run_folder("green", "-o", "out/", *AT_ONCE)
    run_folder("green", "-o", "out.json", *AT_ONCE)
    assert kept == [0, 12]
