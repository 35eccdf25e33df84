"""What only a process of its own shows: streams, signals, locales, start-up time."""

import base64
import io
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import ENV, Rism, Start


def test_help_is_quick_and_imports_nothing_heavy(rism: Rism, start: Start) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = rism("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert shown.returncode == 0
    assert b"run " in shown.stdout
    assert b"inspect " in shown.stdout
    # Seconds of a CPU, which others do not lengthen much; five times the usual.
    assert took < 1.5
    code = "import sys, rism.cli.app; print({'numpy', 'PIL', 'pydantic'} & set(sys.modules))"
    imported, _ = start("-c", code, module=None).communicate(timeout=900)
    assert imported == b"set()\n"


def test_stdin_to_stdout(rism: Rism, tiny_bundle: Path, picture: Path, workplace: Path) -> None:
    arguments = ("run", "-", "green", "-o", "-", "--bundle", tiny_bundle)
    shown = rism(*arguments, data=picture.read_bytes())
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == b""
    with Image.open(io.BytesIO(shown.stdout)) as image:
        assert image.size == (160, 96)
        assert np.asarray(image).any()
    device = rism(*arguments[:4], "/dev/stdout", *arguments[5:], data=picture.read_bytes())
    assert device.stdout == shown.stdout
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize("flags", [["-o", "-"], []])
def test_a_full_stdout(rism: Rism, tiny_bundle: Path, picture: Path, flags: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        shown = rism("run", picture, "green", "--bundle", tiny_bundle, *flags, stdout=full)
    assert shown.returncode == 1
    assert shown.stderr == b"error: cannot write to stdout: No space left on device\n"


def test_a_closed_pipe(rism: Rism, tiny_bundle: Path, picture: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        shown = rism("run", picture, "green", "--bundle", tiny_bundle, "--json", stdout=pipe)
    assert shown.returncode == 141
    assert shown.stderr == b""


def test_an_interrupt_is_one_line_and_code_130(
    start: Start, tiny_bundle: Path, workplace: Path
) -> None:
    process = start("run", "-", "green", "--bundle", tiny_bundle)
    assert process.stdin is not None
    # More than a pipe holds: this returns when the process is reading its picture.
    process.stdin.write(b"x" * 500_000)
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=900)
    assert process.returncode == 130
    assert out == b""
    assert error == b"interrupted\n"
    assert list(workplace.iterdir()) == []


@pytest.fixture
def many(picture: Path, workplace: Path) -> Path:
    """The current folder with 400 images in `in`; the second is broken."""
    (workplace / "in").mkdir()
    for number in range(400):
        (workplace / f"in/{number:03}.png").write_bytes(picture.read_bytes())
    (workplace / "in/001.png").write_bytes(b"none")
    return workplace


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline and not file.exists():
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("number", "code", "flags"),
    [(signal.SIGTERM, 143, ["--json"]), (signal.SIGHUP, 129, ["--jsonl"])],
)
def test_what_is_stopped_leaves_whole_files_and_a_json_of_them(
    start: Start, tiny_bundle: Path, many: Path, number: signal.Signals, code: int, flags: list[str]
) -> None:
    process = start("run", "in", "green", "--bundle", tiny_bundle, "-o", "out/", "-q", *flags)
    wait_for(many / "out/002.green.mask.png")
    process.send_signal(number)
    out, error = process.communicate(timeout=900)
    assert process.returncode == code
    assert error.splitlines()[-1] == b"interrupted"
    lines = out.splitlines()
    entries = json.loads(out) if flags == ["--json"] else [json.loads(line) for line in lines]
    assert "not an image" in entries[1]["error"]
    left = 400 - len(entries)
    assert entries[-1]["error"] == f"interrupted; {left} more images were not looked at"
    told = {file for entry in entries for file in entry.get("files", [])}
    written = {f"out/{file.name}" for file in (many / "out").iterdir()}
    # The last image's files may be there before it is in the JSON.
    assert told <= written and len(written - told) <= 2 and len(told) >= 2
    for file in written:
        with Image.open(many / file) as image:
            image.load()


def test_head_ends_a_folder_quietly(start: Start, tiny_bundle: Path, many: Path) -> None:
    process = start("run", "in", "green", "--bundle", tiny_bundle, "-o", "out/", "--save", "mask")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith(b'in/000.png "green": ')
    process.stdout.close()
    assert process.wait(timeout=900) == 141
    assert process.stderr.read().count(b"\n") <= 1  # the broken image, if it came to that
    process.stderr.close()
    assert len(list((many / "out").iterdir())) < 399


@pytest.mark.parametrize(
    ("redirections", "flags", "code", "message"),
    [
        (">&- 2>&- <&-", ["-o", "out/"], 0, ""),
        (">&-", ["--json"], 1, "results go to stdout, which is closed"),
        ("2>&-", ["-o", "missing/x.png"], 1, ""),
        ("<&-", ["-"], 1, "error: IMAGE is -, but stdin is closed: pipe an image into it\n"),
    ],
)
def test_closed_streams(
    tiny_bundle: Path,
    picture: Path,
    workplace: Path,
    redirections: str,
    flags: list[str],
    code: int,
    message: str,
) -> None:
    asked = ["green", *flags] if flags == ["-"] else [picture, "green", *flags]
    words = [sys.executable, "-m", "rism", "run", *asked, "--bundle", tiny_bundle]
    command = shlex.join(map(str, words))
    run = subprocess.run(
        ["sh", "-c", f"{command} {redirections}"], cwd=workplace, env=ENV, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert run.returncode == code, run.stderr
    assert message in run.stderr and run.stderr.count("\n") == bool(message)
    for kind in ("mask", "overlay") if flags == ["-o", "out/"] else ():
        with Image.open(workplace / f"out/colours.green.{kind}.png") as image:
            image.load()


@pytest.mark.parametrize(
    "locale",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
)
def test_names_and_words_in_any_locale(
    rism: Rism, tiny_bundle: Path, picture: Path, workplace: Path, locale: dict[str, str]
) -> None:
    """The same files, bytes and text, whatever the locale can hold."""
    place = os.fsencode(workplace)
    (workplace / "in").mkdir()
    for name in ("grün.png".encode(), b"caf\xe9.png"):
        Path(os.fsdecode(place + b"/in/" + name)).write_bytes(picture.read_bytes())

    asked = ("run", "in", "grün", "--bundle", tiny_bundle, "--template", "größer {expression}")
    asked += ("--save", "mask", "-o", "out")
    shown = rism(*asked, "--json", env={**ENV, **locale})
    assert (shown.returncode, shown.stderr[:16]) == (0, b"2 images: 2 done")
    bad, good = json.loads(shown.stdout)
    assert good["image"] == "in/grün.png" and good["expression"] == "grün"
    assert good["instruction"] == "größer grün"
    assert "image_base64" not in good and good["files"] == ["out/grün.grün.mask.png"]
    assert bad["image"] == "in/caf\ufffd.png"
    assert base64.b64decode(bad["image_base64"]) == b"in/caf\xe9.png"
    assert {file.encode() for entry in (bad, good) for file in entry["files"]} == {
        b"out/" + name for name in os.listdir(place + b"/out")
    }
    lines = rism(*asked, env={**ENV, **locale})
    assert lines.returncode == 0
    assert [line.split(b" ")[0] for line in lines.stdout.splitlines()] == [
        b"in/caf\xe9.png", "in/grün.png".encode(),
    ]  # fmt: skip
    assert '"grün"'.encode() in lines.stdout
