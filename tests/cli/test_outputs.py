from pathlib import Path

import pytest

from rism.runtime.cli.outputs import Destination, slugs


def test_slugs_are_readable_and_distinct() -> None:
    assert slugs(["The green van!", "the  green van", "the-green-van"]) == [
        "the-green-van",
        "the-green-van-2",
        "the-green-van-3",
    ]
    assert slugs(["../../etc/passwd", "???", "红色的车"]) == [
        "etc-passwd",
        "expression",
        "红色的车",
    ]


def test_slugs_stay_short() -> None:
    (slug,) = slugs(["é" * 500])
    assert len(slug.encode()) <= 60


@pytest.mark.parametrize("stem", ["x" * 250, "界" * 80])
def test_names_fit_the_file_system(stem: str, tmp_path: Path) -> None:
    path = Destination(kinds=("overlay",), folder=tmp_path).path(
        stem, *slugs(["y" * 99]), "overlay"
    )
    path.write_bytes(b"")
    assert path.name.endswith(".overlay.png")
