"""Opening a bundle: its folder, its manifest, and the sizes and hashes of all its files.

The format is docs/bundle.md.
"""

import hashlib
import stat
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rism.runtime.arrays import Float32
from rism.runtime.bundle.file_spec import FileInfo
from rism.runtime.bundle.hub import fetch_bundle, is_hub_id
from rism.runtime.bundle.json_reader import parse_json
from rism.runtime.bundle.manifest import Manifest, parse_manifest
from rism.runtime.bundle.manifest_file import read_manifest_bytes
from rism.runtime.errors import BundleError, one_line

BUILT_IN = "mini"
BUILT_INS = Path(__file__).parents[1] / "builtin"
# While files of a change move to their places (update.py), and what is left of one that was killed.
AMENDING = ".amending"
_PATIENCE_S = 2.0
# Files that an engine could be led to read: lying in the folder unlisted, they are suspect.
_DATA_SUFFIXES = (".weights", ".onnx", ".data", ".bin", ".f32", ".plan")


@dataclass(frozen=True)
class Bundle:
    """A checked bundle folder.

    Attributes:
        path: the folder, resolved.
        manifest: what it holds.
        digest: SHA-256 of manifest.json; with the hashes inside it names the whole bundle.
    """

    path: Path
    manifest: Manifest
    digest: str

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> "Bundle":
        """Open a bundle folder and check its files: existence and sizes, and hashes if `verify`.

        Raises:
            BundleError: the folder, its manifest or one of its files is not as it should be.
        """
        folder = Path(path)
        if not folder.is_dir():
            found = "is a file" if folder.exists() else "is not there"
            raise BundleError(
                f"bundle '{folder}' {found}, expected a folder with manifest.json: "
                "make one with rism export --model ... -o DIR"
            )
        folder, end = folder.resolve(), time.monotonic() + _PATIENCE_S
        while True:
            raw = read_manifest_bytes(folder)
            try:
                return cls._checked(folder, raw, verify=verify)
            except BundleError as error:
                amending = (folder / AMENDING).exists()
                if not amending and raw == read_manifest_bytes(folder):
                    raise
                if time.monotonic() > end:
                    raise BundleError(
                        f"{error}; a change of this bundle was interrupted, rism doctor {folder} "
                        "undoes or finishes it"
                    ) from None
            time.sleep(0.05)

    @classmethod
    def _checked(cls, folder: Path, raw: bytes, *, verify: bool) -> "Bundle":
        manifest = parse_manifest(parse_json(raw))
        _refuse_unlisted(folder, manifest)
        for name, info in manifest.files.items():
            _check_file(folder, name, info, verify=verify)
        return cls(folder, manifest, hashlib.sha256(raw).hexdigest())

    def file(self, name: str) -> Path:
        """Return the path of a listed file."""
        return self.path / name

    def read(self, name: str) -> bytes:
        """Return the bytes of a listed file, checked against its hash as they are read.

        Raises:
            BundleError: it is not the file that the manifest lists, or cannot be read.
        """
        info = self.manifest.files[name]
        try:
            with self.file(name).open("rb") as file:
                data = file.read(info.size + 1)
        except OSError as error:
            raise BundleError(
                f"bundle '{self.path}': '{name}' cannot be read ({error.strerror or error}): "
                "copy it again"
            ) from None
        if len(data) != info.size or hashlib.sha256(data).hexdigest() != info.sha256:
            raise BundleError(
                f"bundle '{self.path}': '{name}' is not the file that manifest.json lists "
                f"({info.size} bytes, sha256 {info.sha256[:12]}...): copy it again, or build it "
                "again"
            )
        return data

    def noise(self) -> Float32:
        """Map the fixed noise into memory, read-only: (rows, channels) float32."""
        info = self.manifest.noise
        return np.memmap(self.file(info.file), dtype="<f4", mode="r", shape=info.shape)

    def tokenizer_json(self) -> bytes:
        """Return the bytes of the tokenizer file."""
        return self.file(self.manifest.prompt.tokenizer).read_bytes()


def resolve_bundle(path_or_name: str | Path | None = None) -> Path:
    """Turn what names a bundle into a folder: a folder, a built-in name (or None), or a hub id.

    A text "mini" is the built-in bundle; a folder of that name is "./mini", or a `Path`. A text
    "owner/name" or "owner/name@revision" that is no folder is a bundle on the model hub.

    Raises:
        BundleError: nothing of that name, and the message lists what could be meant; or the name
            of a built-in one is a bundle's folder here, too.
    """
    present = _built_in_names(BUILT_INS)
    name = BUILT_IN if path_or_name is None else str(path_or_name)
    folder = Path(name)
    if name in present and not (isinstance(path_or_name, Path) and folder.is_dir()):
        if path_or_name is not None and (folder / "manifest.json").exists():
            raise BundleError(
                f"'{name}' is the built-in bundle and also a bundle's folder here: write ./{name} "
                "for the folder, or name no bundle for the built-in one"
            )
        return BUILT_INS / name
    if folder.is_dir():
        return folder
    if folder.exists():
        raise BundleError(
            f"bundle '{name}' is a file, expected a folder with manifest.json: "
            "pass the folder that rism export wrote"
        )
    if not isinstance(path_or_name, Path) and is_hub_id(name):
        return fetch_bundle(name)
    raise BundleError(
        f"no bundle '{one_line(name)}', expected a folder that rism export wrote, a built-in "
        f"name ({', '.join(present) or 'this installation has none'}) or a hub id owner/name: "
        "make one with rism export --model ... -o DIR"
    )


def _built_in_names(root: Path) -> list[str]:
    if not root.is_dir():
        return []
    return sorted(p.name for p in root.iterdir() if (p / "manifest.json").is_file())


def _refuse_unlisted(folder: Path, manifest: Manifest) -> None:
    for file in folder.rglob("*"):
        name = file.relative_to(folder).as_posix()
        data = file.suffix in _DATA_SUFFIXES and not file.is_dir()
        if data and name not in manifest.files and not is_companion(file.relative_to(folder)):
            raise BundleError(
                f"bundle '{folder}': '{one_line(name)}' is not listed in manifest.json: "
                "remove it, or export the bundle again"
            )


def is_companion(path: Path) -> bool:
    """Tell whether a file's name is of those that macOS puts beside files: ._a and __MACOSX/a."""
    return path.name.startswith("._") or "__MACOSX" in path.parts


def _check_file(folder: Path, name: str, info: FileInfo, *, verify: bool) -> None:
    file = folder / name
    try:
        status = file.lstat()
        inside = file.resolve(strict=True).is_relative_to(folder)
    except (OSError, RuntimeError):
        raise BundleError(
            f"bundle '{folder}': '{name}' is missing: copy the whole folder, or export again"
        ) from None
    if is_linked(folder, name) or not inside or not stat.S_ISREG(status.st_mode):
        raise BundleError(
            f"bundle '{folder}': '{name}' is a link or not a plain file, expected a file inside "
            "the folder: copy the bundle with its files (cp -rL)"
        )
    if status.st_size != info.size:
        raise BundleError(
            f"bundle '{folder}': '{name}' is {status.st_size} bytes, expected {info.size}: "
            "copy it again, or export again"
        )
    if not verify:
        return
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != info.sha256:
        raise BundleError(
            f"bundle '{folder}': '{name}' has sha256 {digest[:12]}..., expected "
            f"{info.sha256[:12]}...: copy it again, or export again"
        )


def is_linked(folder: Path, name: str) -> bool:
    """Tell whether a file in a folder is a link or behind one."""
    file = Path(name)
    return any((folder / part).is_symlink() for part in (file, *list(file.parents)[:-1]))
