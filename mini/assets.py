"""Build the sprites that `mini` is trained and tested on: `python -m mini.assets [--out DIR]`.

Downloads the packages below with npm, checks their SHA-256, reads only the named members, draws
each emoji of `kinds.txt` in each style and writes `sprites.npy` and `sprites.json`. The repository
holds no asset; `build/` is not part of it.
"""

import argparse
import io
import json
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rism.evaluation.scenes.kinds import COLOURS, KIND_NAMES, draw_sprite

SIDE = 128  # pixels of a sprite's longer side
FOLDER = Path("build/assets")
_RENDER_PX = 192
_OUTSIDE = re.compile(r"""href\s*=\s*["'](?!#)|url\((?!["']?#)|<!""")  # other files and entities
_MEMBER_LIMIT = 128 << 20  # bytes of one member of a package
_SPRITE_LIMIT = 1 << 20  # pixels of one image of a package


@dataclass(frozen=True)
class Package:
    """A package of emoji in one style, of `packages.json`.

    Attributes:
        style: name of the style in `sprites.json`.
        name, version, sha256: what `npm pack` downloads.
        licence, author: for the model card; CC-BY asks for attribution.
        look: the word for the style, "" if none fits.
        held_out: only for tests.
    """

    style: str
    name: str
    version: str
    sha256: str
    licence: str
    author: str
    look: str
    held_out: bool


PACKAGES = tuple(
    Package(**row) for row in json.loads((Path(__file__).parent / "packages.json").read_text())
)
DRAWN = "drawn"  # the style of our own drawings


@dataclass(frozen=True)
class ThingKind:
    """A thing with its names, the words for its sections, and the emoji that show it."""

    names: tuple[str, ...]
    groups: tuple[str, ...]
    emoji: tuple[str, ...]
    plural: bool


@cache
def kinds() -> dict[str, ThingKind]:
    """Every kind of `kinds.txt` by its first name."""
    found: dict[str, ThingKind] = {}
    groups: tuple[str, ...] = ()
    for line in (Path(__file__).parent / "kinds.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            groups = tuple(filter(None, line.strip("[]").split(", ")))
        elif not line.startswith("#"):
            for entry in line.split("; "):
                ((text, emoji),) = re.findall(r"^([ -~]+?)\s*([^ -~]*)$", entry.strip())
                names = tuple(text.replace("+", "").split(", "))
                shown = re.findall(r"[^\ufe0f\u200d](?:\ufe0f?\u200d[^\ufe0f])*\ufe0f?", emoji)
                found[names[0]] = ThingKind(names, groups, tuple(shown), "+" in text)
    return found


def download(package: Package, folder: Path) -> Path:
    """The package's archive in `folder`, downloaded unless it is there; its hash is checked.

    Raises:
        SystemExit: npm fails, or the archive is another one.
    """
    file = folder / f"{package.name.strip('@').replace('/', '-')}-{package.version}.tgz"
    if not file.exists():
        command = [
            "npm",
            "pack",
            "--silent",
            "--ignore-scripts",
            f"{package.name}@{package.version}",
        ]
        if subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL).returncode:
            raise SystemExit(f"npm could not download {package.name}@{package.version}")
    digest = sha256(file.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise SystemExit(f"{file}: SHA-256 {digest}, expected {package.sha256}; delete it")
    return file


def read_members(file: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The regular files of an archive whose names are wanted; nothing is written to disk.

    Raises:
        ValueError: One of them is larger than 128 MB.
    """
    found = {}
    with tarfile.open(file) as archive:
        for member in archive:
            if member.isreg() and wanted(member.name):
                if member.size > _MEMBER_LIMIT:
                    raise ValueError(f"{file}: {member.name} has {member.size} bytes")
                content = archive.extractfile(member)
                assert content is not None
                found[member.name] = content.read()
    return found


def _hex(emoji: str) -> str:
    return "-".join(f"{ord(c):x}" for c in emoji if c != "\ufe0f")


def _icon_svg(icons: dict[str, Any], name: str) -> str | None:
    name = icons.get("aliases", {}).get(name, {}).get("parent", name)
    icon = icons["icons"].get(name)
    if icon is None or _OUTSIDE.search(icon["body"]):
        return None
    width, height = (icon.get(k, icons.get(k, 16)) for k in ("width", "height"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {int(width)} {int(height)}" '
        f'width="{_RENDER_PX}" height="{_RENDER_PX}">{icon["body"]}</svg>'
    )


def _from_svg(svg: str) -> Image.Image:
    import resvg_py

    drawn = bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))
    return Image.open(io.BytesIO(drawn)).convert("RGBA")


def normal_sprite(image: Image.Image) -> np.ndarray | None:
    """Trim an image to what is not clear: (SIDE, SIDE, 4) uint8, premultiplied, centred.

    None if nothing is left, or if it is too large.
    """
    if image.width * image.height > _SPRITE_LIMIT:
        return None
    straight = np.asarray(image.convert("RGBA"), np.float32)
    solid = straight[..., 3] > 16
    if solid.mean() < 0.02:
        return None
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    cut = straight[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    cut[..., :3] *= cut[..., 3:] / 255
    scale = SIDE / max(cut.shape[:2])
    size = tuple(max(1, round(side * scale)) for side in cut.shape[1::-1])
    small = Image.fromarray((cut + 0.5).astype(np.uint8)).resize(
        size, Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BILINEAR
    )
    out = np.zeros((SIDE, SIDE, 4), np.uint8)
    x, y = (SIDE - size[0]) // 2, (SIDE - size[1]) // 2
    out[y : y + size[1], x : x + size[0]] = np.asarray(small)
    out[..., :3] = np.minimum(out[..., :3], out[..., 3:])
    return out


def package_sprites(files: dict[str, Path]) -> Iterator[tuple[str, str, str, np.ndarray]]:
    """Style, kind, emoji and sprite of everything that the packages show; `files` by style."""
    icons: dict[str, Any] = {}
    names: dict[str, set[str]] = {}  # of an emoji in any set
    for style, file in files.items():
        parts = read_members(file, lambda name: name.endswith(("/icons.json", "/chars.json")))
        for path, content in parts.items():
            if path.endswith("icons.json"):
                icons[style] = json.loads(content)
            else:
                for code, name in json.loads(content).items():
                    names.setdefault(code.replace("-fe0f", ""), set()).update(
                        (name, name.replace("-", ""))
                    )
    images = {}
    for style in files.keys() - icons.keys():
        images[style] = {
            Path(name).stem.replace("-fe0f", ""): content
            for name, content in read_members(files[style], lambda n: n.endswith(".webp")).items()
        }
    for kind, entry in kinds().items():
        for emoji in entry.emoji:
            code = _hex(emoji)
            for style in files:
                image: Image.Image | None = None
                if style not in images:
                    drawings = (_icon_svg(icons[style], n) for n in sorted(names.get(code, ())))
                    svg = next(filter(None, drawings), None)
                    image = None if svg is None else _from_svg(svg)
                elif code in images[style]:
                    image = Image.open(io.BytesIO(images[style][code]))
                sprite = None if image is None else normal_sprite(image)
                if sprite is not None:
                    yield style, kind, emoji, sprite


def drawn_sprites() -> Iterator[tuple[str, str, str, np.ndarray]]:
    """Our own drawings in every colour, likewise."""
    by_name = {name: kind for kind, entry in kinds().items() for name in entry.names}
    for name in KIND_NAMES:
        for colour, shades in COLOURS.items():
            drawn = draw_sprite(name, shades[0], size_px=SIDE, flip=False)
            sprite = normal_sprite(Image.fromarray(drawn))
            assert sprite is not None
            yield DRAWN, by_name[name], colour, sprite


def build(folder: Path) -> None:
    """Write the sprites (N, SIDE, SIDE, 4) uint8 and their list into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {package.style: download(package, folder) for package in PACKAGES}
    found = [*package_sprites(files), *drawn_sprites()]
    np.save(folder / "sprites.npy", np.stack([sprite for *_, sprite in found]))
    rows = [[style, kind, emoji] for style, kind, emoji, _ in found]
    (folder / "sprites.json").write_text(json.dumps(rows, ensure_ascii=False) + "\n")


def main() -> None:
    """Build, and say what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER)
    folder = parser.parse_args().out
    build(folder)
    rows = json.loads((folder / "sprites.json").read_text())
    held = {package.style for package in PACKAGES if package.held_out}
    styles: dict[str, set[str]] = {kind: set() for kind in kinds()}
    for style, kind, _ in rows:
        styles[kind].add(style)
    for style in [*(p.style for p in PACKAGES), DRAWN]:
        print(f"{style:<12} {sum(row[0] == style for row in rows):>5}")
    few = [kind for kind, have in styles.items() if len(have - held) < 3]
    print(f"{len(kinds())} kinds, {len(kinds()) - len(few)} in three styles or more; not: {few}")


if __name__ == "__main__":
    main()
