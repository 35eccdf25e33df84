"""Nothing leaves the machine, and nothing is written that nobody asked for.

onnxruntime has a telemetry of its own: it writes an identifier and a queue under HOME at once, and
after some nine seconds looks up its maker's host (1.31 on Linux).
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT, STREET

# It is off where CI is set, and in our own tests: here it is to be what a user has.
BARE = {
    k: v
    for k, v in os.environ.items()
    if k not in ("CI", "ORT_DISABLE_TELEMETRY") and not k.startswith(("XDG_", "PYTHON"))
}
# Python's own network calls; those of a library in C++ are strace's.
HOOK = """
import sys
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        print("ASKED", event, arguments[1:] if event == "socket.connect" else arguments)
sys.addaudithook(hook)
"""
STAY = "; import time; time.sleep(11)"
API = "from rism import Segmenter; Segmenter.from_bundle(provider='cpu').segment('{image}', 'it')"
WAYS = {
    "command": ["-m", "rism", "run", "{image}", "the green van", "-q", "-o", "mask.png"],
    "library": ["-c", API + STAY],
    "triton": ["-c", "import rism.runtime.triton_backend, onnxruntime"],
    "benchmarks": ["-c", "import benchmarks.capture.onnx"],
    "export": ["-c", "import rism.export.parity.gate"],
    "calibration": ["-c", "import rism.calibration.ort_sessions, onnxruntime"],
    "tests": ["-c", "import tests.conftest, onnxruntime"],
    "onnxruntime alone": ["-c", "import onnxruntime" + STAY],
}


def _start(folder: Path, arguments: list[str]) -> "subprocess.Popen[str]":
    """Start Python in a folder of its own, with an empty HOME, watched."""
    for name in ("home", "work", "site"):
        (folder / name).mkdir(parents=True)
    (folder / "site/sitecustomize.py").write_text(HOOK)
    python = [sys.executable, *arguments]
    if shutil.which("strace"):
        trace = ["strace", "-f", "-e", "trace=connect,sendto", "-o", str(folder / "trace")]
        python = [*trace, *python]
    path = os.pathsep.join(map(str, (folder / "site", ROOT)))
    return subprocess.Popen(
        python, cwd=folder / "work", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**BARE, "HOME": str(folder / "home"), "PYTHONPATH": path},
    )  # fmt: skip


def test_no_way_into_rism_looks_up_a_host_or_writes_to_home(tmp_path: Path) -> None:
    started = {
        way: _start(tmp_path / way, [each.replace("{image}", str(STREET)) for each in arguments])
        for way, arguments in WAYS.items()
    }
    said = {way: process.communicate(timeout=120)[0] for way, process in started.items()}
    assert {way: process.returncode for way, process in started.items()} == dict.fromkeys(WAYS, 0)
    written, asked = {}, {}
    for way in WAYS:
        home, trace = tmp_path / way / "home", tmp_path / way / "trace"
        written[way] = [str(file.relative_to(home)) for file in home.rglob("*") if file.is_file()]
        lines = said[way].splitlines()
        lines += trace.read_text().splitlines() if trace.exists() else []
        asked[way] = [line for line in lines if "AF_INET" in line or line.startswith("ASKED")]
    # The same watch on onnxruntime alone: what this test would see.
    if not written.pop("onnxruntime alone"):
        pytest.skip("this onnxruntime has no telemetry")
    assert asked.pop("onnxruntime alone") or not shutil.which("strace")
    assert not any(written.values()), written
    assert not any(asked.values()), asked
    assert said["command"] == ""


@pytest.mark.parametrize(
    "code",
    [
        "from rism.cli import main; main()",
        "from rism.cli.console import Console\n"
        "with Console(quiet=True).reporting(): import matplotlib.figure",
    ],
)
def test_quiet_is_quiet_where_home_cannot_be_written_to(tmp_path: Path, code: str) -> None:
    """Neither onnxruntime nor matplotlib, which both want a folder there, says a word."""
    arguments = ["run", str(STREET), "the green van", "-q", "-o", str(tmp_path / "mask.png")]
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**BARE, "HOME": "/proc/none", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
