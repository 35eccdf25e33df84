"""Reading the JSON files of a checkpoint, which is untrusted input."""

import json
from pathlib import Path
from typing import Any

from rism.export.errors import CheckpointError
from rism.runtime.errors import one_line

_MAX_JSON = 64 * 2**20


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a checkpoint.

    Raises:
        CheckpointError: It is missing, too large, or not a JSON object.
    """
    try:
        if path.stat().st_size > _MAX_JSON:
            raise CheckpointError(f"{path} is larger than 64 MiB, expected a small JSON file")
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing, expected a folder in diffusers' layout: download it again"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {one_line(error)}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {type(value).__name__}, expected a JSON object")
    return value


def _is_beside(path: Path) -> bool:
    """Tell whether a file is no part of the checkpoint: hidden, metadata of macOS, or empty."""
    if path.name.startswith(".") or "__MACOSX" in path.parts:
        return True
    try:
        return path.stat().st_size == 0
    except OSError:  # a broken link: opening it gives the error
        return False


def list_files(folder: Path, *patterns: str) -> list[Path]:
    """List the files of a folder, sorted, without hidden and empty ones."""
    found = [path for pattern in patterns for path in folder.glob(pattern)]
    return sorted(path for path in found if not _is_beside(path))
