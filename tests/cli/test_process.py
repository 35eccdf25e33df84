"""What only a process of its own shows: exit codes, streams, signals, start-up time."""

import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Start = Callable[..., "subprocess.Popen[bytes]"]
Rism = Callable[..., "subprocess.CompletedProcess[bytes]"]


def test_help_is_quick_and_imports_nothing_heavy(rism: Rism, start: Start) -> None:
    began = time.perf_counter()
    shown = rism("--help")
    took = time.perf_counter() - began
    assert shown.returncode == 0
    assert b"run " in shown.stdout
    assert b"inspect " in shown.stdout
    # Ten times the usual, for a machine that is doing something else as well.
    assert took < 3
    code = "import sys, rism.runtime.cli.app; print({'numpy', 'PIL', 'rich'} & set(sys.modules))"
    imported, _ = start("-c", code, module=None).communicate(timeout=60)
    assert imported == b"set()\n"


def test_version(rism: Rism) -> None:
    import rism as package

    assert rism("--version").stdout.decode() == f"rism {package.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [["run"], ["run", "a.png"], ["walk"], ["run", "a.png", "x", "--provider", "tpu"], ["--nope"]],
)
def test_wrong_usage_is_code_2(rism: Rism, arguments: list[str]) -> None:
    shown = rism(*arguments)
    assert shown.returncode == 2
    assert shown.stdout == b""
    assert b"Traceback" not in shown.stderr


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


@pytest.mark.parametrize("flags", [["-o", "-"], ["--json"], []])
def test_a_full_stdout(
    rism: Rism, tiny_bundle: Path, picture: Path, workplace: Path, flags: list[str]
) -> None:
    with Path("/dev/full").open("wb") as full:
        shown = rism("run", picture, "green", "--bundle", tiny_bundle, *flags, stdout=full)
    assert shown.returncode == 1
    assert shown.stderr == b"error: cannot write to stdout: No space left on device\n"


def test_a_closed_pipe(rism: Rism, tiny_bundle: Path, picture: Path, workplace: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        shown = rism("run", picture, "green", "--bundle", tiny_bundle, "--json", stdout=pipe)
    assert shown.returncode == 1
    assert shown.stderr == b"error: cannot write to stdout: Broken pipe\n"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("/dev/full", b"cannot write /dev/full: No space left on device"),
        ("/proc/nothing.png", b"cannot write /proc/nothing.png"),
        ("/proc/rism/", b"cannot make folder /proc/rism"),
        ("file.txt/mask.png", b"Not a directory|is not there"),
    ],
)
def test_places_that_take_nothing(
    rism: Rism, tiny_bundle: Path, picture: Path, workplace: Path, output: str, message: bytes
) -> None:
    (workplace / "file.txt").write_bytes(b"")
    shown = rism("run", picture, "green", "--bundle", tiny_bundle, "-o", output)
    assert shown.returncode == 1
    assert shown.stderr.startswith(b"error: ")
    assert shown.stderr.count(b"\n") == 1
    assert any(part in shown.stderr for part in message.split(b"|"))
    assert not Path("/dev/full").is_file()


def test_an_interrupt_is_one_line_and_code_130(
    start: Start, tiny_bundle: Path, workplace: Path
) -> None:
    process = start("run", "-", "green", "--bundle", tiny_bundle)
    assert process.stdin is not None
    # More than a pipe holds: this returns when the process is reading its picture.
    process.stdin.write(b"x" * 500_000)
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == b""
    assert error == b"interrupted\n"
    assert list(workplace.iterdir()) == []


def test_an_interrupt_among_many_pictures_leaves_whole_files(
    start: Start, tiny_bundle: Path, picture: Path, workplace: Path
) -> None:
    (workplace / "in").mkdir()
    for number in range(400):
        (workplace / f"in/{number}.png").write_bytes(picture.read_bytes())
    process = start("run", "in", "green", "--bundle", tiny_bundle, "-o", "out/", "-q")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (workplace / "out/1.green.mask.png").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, b"interrupted\n")
    written = sorted((workplace / "out").iterdir())
    assert 0 < len(written) < 800
    for file in written:
        assert file.name.endswith((".green.mask.png", ".green.overlay.png"))
        with Image.open(file) as image:
            image.load()


def test_the_built_in_model_says_what_it_is(rism: Rism, picture: Path, workplace: Path) -> None:
    shown = rism("run", picture, "the green square", "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)[0]["model"] == "mini"
    note = shown.stderr.decode()
    assert note.count("\n") == 1
    assert "demonstrator" in note
    assert "rism export --model step1x" in note
    assert rism("run", picture, "the green square", "--json", "-q").stderr == b""
