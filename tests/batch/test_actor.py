"""`RismActor` between `decode` and `to_rows`: rows with masks, rows with errors, no Ray."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rism.batch import RismActor, decode, encode, to_rows
from rism.batch.tables import Store
from rism.runtime.errors import BundleError
from rism.runtime.result.rle import decode_rle
from rism.runtime.segmenter import Segmenter
from tests.batch.conftest import png


@pytest.fixture
def actor(tiny_bundle: Path) -> RismActor:
    return RismActor(str(tiny_bundle), provider="cpu", threads=1)


def batch(*rows: tuple[Any, list[str]]) -> pa.Table:
    images, texts = zip(*rows, strict=True)
    return pa.table({"id": [*map(str, range(len(rows)))], "image": images, "expressions": texts})


def test_rows_are_what_the_segmenter_finds(
    actor: RismActor, tiny_bundle: Path, colours: np.ndarray
) -> None:
    texts = ["red", "blue", "nothing"]
    rows = to_rows(encode(actor(batch((png(colours), texts), (png(colours[:, ::-1]), ["red"])))))
    assert [(row["id"], row["expression"]) for row in rows.to_pylist()] == [
        *(("0", text) for text in texts),
        ("1", "red"),
    ]
    segmenter = Segmenter.from_bundle(tiny_bundle, provider="cpu")
    for row, expected in zip(rows.to_pylist(), segmenter.segment(colours, texts), strict=False):
        height, width = row["rle"]["size"]
        assert (decode_rle(row["rle"]["counts"], (height, width)) == expected.mask_hw).all()
        box = None if expected.box_xyxy is None else list(expected.box_xyxy)
        assert (row["box_xyxy"], row["area_px"]) == (box, expected.area_px)
        assert (row["height"], row["width"]) == expected.mask_hw.shape
        for name in ("confidence", "separability", "reason"):
            assert row[name] == getattr(expected, name)
        assert row["error"] is None
    assert rows.to_pylist()[0]["area_px"] > 0


def test_what_is_broken_is_a_row(actor: RismActor, colours: np.ndarray) -> None:
    good = png(colours)
    rows = to_rows(
        encode(
            actor(
                batch(
                    (good[:100], ["red", "blue"]),
                    (good, ["red", "\0", "blue"]),
                    (png(np.zeros((2, 3000, 3), np.uint8)), ["red"]),
                )
            )
        )
    ).to_pylist()
    found = [(row["id"], row["expression"], row["error"] is None) for row in rows]
    assert found == [
        ("0", "red", False),
        ("0", "blue", False),
        ("1", "red", True),
        ("1", "\0", False),
        ("1", "blue", True),
        ("2", "red", False),
    ]
    assert "damaged or cut short" in rows[0]["error"] and rows[0]["rle"] is None
    assert "control character" in rows[3]["error"]


def test_another_bundle_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match="is another than the run's"):
        RismActor(str(tiny_bundle), provider="cpu", digest="0" * 64)


def test_no_image_outside_of_the_root_is_opened(tmp_path: Path, colours: np.ndarray) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside.png"
    root.mkdir()
    for place in (root / "in.png", outside):
        place.write_bytes(png(colours))
    os.mkfifo(root / "pipe.png")
    cases = {
        "in.png": None,
        f"{root}/in.png": None,
        str(outside): "allow its place with --root",
        "../outside.png": "allow its place with --root",
        "s3://bucket/a.png": "allow its place with --root",
        f"file://{outside}": "allow its place with --root",
        "pipe.png": "is not a file",
        "gone.png": "is not there",
        "nul\0.png": "cannot be",
    }
    given = pa.table({"id": [*cases], "path": [*cases], "expressions": [["red"]] * len(cases)})
    tables = decode(given, root=Store.open(str(root), "--root"))
    rows = [row for each in tables for row in each.to_pylist()]
    for row, expected in zip(rows, cases.values(), strict=True):
        assert row["error"] is None if expected is None else expected in str(row["error"])


def test_pixels_come_in_small_tables(colours: np.ndarray) -> None:
    large = png(np.tile(colours, (20, 20, 1)))
    tables = [*decode(batch(*[(large, ["red"])] * 8))]
    assert sum(map(len, tables)) == 8
    pixels = max(each.column("pixels").nbytes for each in tables)
    assert len(tables) > 1 and pixels < 8 * 2**20 + 2 * colours.nbytes * 400
