"""Where the files of the repository are that tests use, and what a folder holds."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
STREET = EXAMPLES / "street.png"
MINI = ROOT / "runtime/builtin/mini"


def contents(place: Path) -> dict[str, bytes]:
    """Every file in a folder and below it, by its path from there."""
    files = (file for file in place.rglob("*") if file.is_file())
    return {file.relative_to(place).as_posix(): file.read_bytes() for file in files}
