"""The kinds, and sprites from packages of strangers."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from mini import assets
from mini.assets import PACKAGES, SIDE, download, kinds, normal_sprite, package_sprites

SQUARE = '<path fill="#f00" d="M8 4h4v8h-4z"/>'


def _archive(file: Path, members: dict[str, bytes], link: str | None = None) -> Path:
    with tarfile.open(file, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link is not None:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    return file


def _package(file: Path, icons: dict[str, object], **rest: object) -> Path:
    sizes = {"width": 16, "height": 16}
    content = json.dumps({"icons": icons, **sizes, **rest}).encode()
    names = json.dumps({"1f436": "dog-face", "1f98a": "fox"}).encode()
    members = {"package/icons.json": content, "package/chars.json": names}
    return _archive(file, members, link="package/other/icons.json")


def test_the_kinds_are_many_and_their_names_mean_one_kind() -> None:
    assert len(kinds()) >= 300
    assert kinds()["dog"].names[:2] == ("dog", "puppy")
    assert "🐶" in kinds()["dog"].emoji
    assert kinds()["polar bear"].emoji == ("🐻‍❄️",)
    names = [name for kind in kinds().values() for name in kind.names]
    assert sorted(names) == sorted(set(names))
    assert sum(package.held_out for package in PACKAGES) >= 2


def test_a_package_gives_sprites_by_name_and_alias(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    icons = {"dog": {"body": SQUARE}, "fox": {"body": SQUARE, "height": 32}}
    aliases = {"dog-face": {"parent": "dog"}}
    file = _package(tmp_path / "a.tgz", icons, aliases=aliases)
    found = {kind: sprite for _, kind, _, sprite in package_sprites({"noto": file})}
    assert sorted(found) == ["dog", "fox"]
    solid = found["dog"][..., 3] > 127
    # Trimmed to 4 x 8 of 16 x 16, and as high as a sprite is.
    assert solid.any(1).sum() == SIDE
    assert solid.any(0).sum() == pytest.approx(SIDE / 2, abs=2)
    assert (found["dog"][solid] == (255, 0, 0, 255)).all(-1).mean() > 0.95


def test_hostile_packages_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = PACKAGES[0]
    name = f"{package.name.strip('@').replace('/', '-')}-{package.version}.tgz"
    _archive(tmp_path / name, {"package/assets/1f436.webp": b"other"})
    with pytest.raises(SystemExit, match="SHA-256"):
        download(package, tmp_path)
    monkeypatch.setattr(assets, "_MEMBER_LIMIT", 4)
    with pytest.raises(ValueError, match=r"icons\.json has \d+ bytes"):
        assets.read_members(_package(tmp_path / "b.tgz", {}), lambda n: n.endswith("icons.json"))
    assert normal_sprite(Image.new("RGBA", (2048, 2048), "red")) is None
    assert normal_sprite(Image.new("RGBA", (64, 64))) is None


def test_an_external_image_of_a_drawing_is_not_read(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    Image.new("RGB", (16, 16), "blue").save(tmp_path / "secret.png")
    body = f'<image href="{tmp_path}/secret.png" width="16" height="16"/>{SQUARE}'
    file = _package(tmp_path / "c.tgz", {"fox": {"body": body}})
    assert list(package_sprites({"noto": file})) == []
