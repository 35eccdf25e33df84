"""Where the files of the repository are that tests use."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
STREET = EXAMPLES / "street.png"
MINI = ROOT / "runtime/builtin/mini"
