from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rism.runtime.errors import RismError
from tests.cli.conftest import invoke


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Put a function in the place of the real one; options and progress stay real."""
    real = pytest.importorskip("rism.export")
    return lambda function: monkeypatch.setattr(real, "export_bundle", function)


class Report:
    size_bytes = 8_100_000

    def parity_table(self) -> str:
        return "features 1e-6\n"


def test_flags_reach_the_exporter(exporter: Any) -> None:
    from rism.export import ExportOptions, Progress

    calls: list[Any] = []

    def record(*arguments: Any, progress: Progress) -> Report:
        calls.append(arguments)
        progress.stage("tracing")
        return Report()

    exporter(record)
    flags = "--model mini -o out --capture scores,vectors --token-attention --offline --revision v1"
    flags += (
        " --feature-site adaln --precision fp16 --parity blocks --sizes 64x32,32x32 --no-vision-id"
    )
    shown = invoke("export", *flags.split(), "--template", "cut {expression}")
    assert shown.stdout == "features 1e-6\n"
    assert shown.stderr.startswith("tracing\n")
    assert "wrote out, 8.1 MB, in " in shown.stderr
    options = ExportOptions(
        captures=("scores", "vectors"), feature_site="adaln", token_attention=True,
        precision="fp16", sizes=((64, 32), (32, 32)), template="cut {expression}",
        vision_id=False, parity="blocks", revision="v1", offline=True,
    )  # fmt: skip
    assert calls == [("mini", Path("out"), options)]
    quiet = invoke("export", "--model", "m", "-o", "out", "-q", "--size-level", "512")
    assert quiet.output == ""
    assert calls[1] == ("m", Path("out"), ExportOptions(size_level=512))


def test_a_failed_export_is_one_line(exporter: Any) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RismError("features differ by 1, expected below 1e-5")

    exporter(fail)
    shown = invoke("export", "--model", "mini", "-o", "out", code=1)
    assert shown.stderr == "error: features differ by 1, expected below 1e-5\n"
