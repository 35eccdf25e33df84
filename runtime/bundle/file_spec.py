"""What a manifest says about each file of its bundle: size and hash."""

from dataclasses import dataclass

from rism.runtime.bundle.json_reader import Node, is_safe_name
from rism.runtime.errors import BundleError, one_line


@dataclass(frozen=True)
class FileInfo:
    """Digest (64 hexadecimal digits) and size in bytes of one file."""

    sha256: str
    size: int


def parse_files(node: Node) -> dict[str, FileInfo]:
    """Read the object "files" of a manifest.

    Raises:
        BundleError: a name that leads out of the bundle, or a wrong size or digest.
    """
    files: dict[str, FileInfo] = {}
    for name in node.names():
        if not is_safe_name(name) or name == "manifest.json":
            raise BundleError(
                f"manifest.json: 'files' lists '{one_line(name, limit=80)}', expected relative "
                "paths inside the bundle (no .., no absolute path): do not use this bundle"
            )
        entry = node.node(name)
        files[name] = FileInfo(entry.digest("sha256"), entry.integer("size", 0, 2**44))
    return files
