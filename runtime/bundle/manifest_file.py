"""manifest.json as a file: its size checked before it is read, its text before it is trusted."""

import stat
from pathlib import Path
from typing import Any

from rism.runtime.bundle.json_reader import parse_json
from rism.runtime.bundle.manifest import Manifest, parse_manifest
from rism.runtime.errors import BundleError

MAX_MANIFEST_BYTES = 2**20


def read_manifest_json(folder: Path) -> dict[str, Any]:
    """Return a bundle's manifest.json as it is, only known to be a JSON object.

    Raises:
        BundleError: it is missing, a link, too large or not a JSON object.
    """
    data = parse_json(read_manifest_bytes(folder))
    if not isinstance(data, dict):
        raise BundleError("manifest.json is not a JSON object: export the bundle again")
    return data


def parse_manifest_file(file: Path) -> Manifest:
    """Parse a manifest that is not in its bundle's folder.

    Raises:
        BundleError: it is too large, or none.
    """
    with file.open("rb") as handle:
        raw = handle.read(MAX_MANIFEST_BYTES + 1)
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{file} is larger than 1 MiB, expected a bundle's manifest.json")
    return parse_manifest(parse_json(raw))


def read_manifest_bytes(folder: Path) -> bytes:
    """Return the bytes of a folder's manifest.json.

    Raises:
        BundleError: it is missing, a link, empty or too large.
    """
    file = folder / "manifest.json"
    try:
        mode = file.lstat().st_mode
    except FileNotFoundError:
        raise BundleError(
            f"bundle '{folder}' has no manifest.json: pass a folder that rism export wrote"
        ) from None
    if not stat.S_ISREG(mode):
        raise BundleError(
            f"bundle '{folder}': manifest.json is not a plain file (a link or a folder): "
            "copy the bundle with its files"
        )
    with file.open("rb") as handle:
        raw = handle.read(MAX_MANIFEST_BYTES + 1)
    if not raw:
        raise BundleError(
            f"bundle '{folder}': manifest.json is empty (0 bytes): copy the bundle again"
        )
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"bundle '{folder}': manifest.json is larger than 1 MiB: export the bundle again"
        )
    return raw
