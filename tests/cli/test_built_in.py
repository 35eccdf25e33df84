"""The built-in bundle is part of the package: no command changes it, each says how to copy it."""

import re

import pytest

from rism.runtime.bundle.reader import resolve_bundle
from rism.runtime.bundle.update import update_bundle
from rism.runtime.errors import OutputError
from tests.cli.conftest import invoke
from tests.paths import EXAMPLES

BUILT_IN = resolve_bundle()
SAYS = rf"is part of the installed package.*copy it \(cp -r {re.escape(str(BUILT_IN))} my-mini\)"


def _state() -> dict[str, tuple[int, int]]:
    found = {str(file): file.stat() for file in BUILT_IN.rglob("*")}
    return {name: (stat.st_mtime_ns, stat.st_size) for name, stat in found.items()}


@pytest.mark.parametrize(
    "line",
    [
        ["doctor", "mini", "--record"],
        ["doctor", "--record"],
        ["calibrate", str(BUILT_IN), "--images", str(EXAMPLES)],
        ["build", str(BUILT_IN / ".." / "mini")],
    ],
)
def test_commands_refuse_before_they_work(line: list[str]) -> None:
    if line[0] == "build":
        pytest.importorskip("onnx_ir")
    before = _state()
    result = invoke(*line, code=1)
    assert result.stdout == ""
    assert re.search(SAYS, result.stderr) and result.stderr.count("\n") == 1
    assert _state() == before


def test_and_so_does_what_all_changes_go_through() -> None:
    before = _state()
    with pytest.raises(OutputError, match=SAYS):
        update_bundle(BUILT_IN, lambda data: data.update(note="changed"))
    assert _state() == before
