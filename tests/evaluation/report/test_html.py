"""The page: in one piece, harmless whatever a dataset says, and beside the right figures."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rism.evaluation.datasets.sample import Problem, Sample
from rism.evaluation.metrics.iou import Overlap
from rism.evaluation.report.outcome import conclude
from rism.evaluation.report.published_scores import published
from rism.evaluation.report.summary import PICKS
from rism.evaluation.report.thumbnails import FOUND_RGB, TRUE_RGB, drawn
from rism.evaluation.run.record_log import append, begin
from rism.evaluation.run.records import Record
from rism.runtime.errors import InputError
from rism.runtime.result.rle import encode_rle
from tests.evaluation.small_set import SmallSet

HOSTILE = "</p><script>alert('1')</script> <img src=http://a.b/c onerror=x> \"&amp;\" \x1b[2J"


class Elements(HTMLParser):
    """What a browser would see: tags with attributes, and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def write(folder: Path, dataset: SmallSet, **about: Any) -> Elements:
    """Records with an IoU of 0, 1/n, 2/n, ..., a sample that has none, and their page."""
    scored = list(dataset.samples)
    dataset.samples.append(Sample("unscored", "0", "green"))
    begin(folder, dataset.run(options={"template": HOSTILE}))
    found = np.zeros((96, 160), bool)
    found[:20, :30] = True
    for number, sample in enumerate(scored):
        record = Record(
            sample, Overlap(number, len(scored), 0, 1), False, 1.0, 1.0, 1.0, 1.0, None, None, 5.0,
            (96, 160), encode_rle(found),
        )  # fmt: skip
        append(folder, [record])
    conclude(dataset, folder, [Problem(f"p {HOSTILE}", HOSTILE)], about=about)
    elements = Elements((folder / "report.html").read_text("utf-8"))
    assert elements.open == []
    return elements


def hostile_set() -> SmallSet:
    dataset = SmallSet(1, name=f"name {HOSTILE}", notes=[f"note {HOSTILE}"])
    dataset.samples = [Sample(f"key {HOSTILE}", "0", f"green {HOSTILE}", group=f"group {HOSTILE}")]
    dataset.problems = [Problem(f"left {HOSTILE}", HOSTILE)]
    return dataset


def test_text_of_a_dataset_is_escaped_and_the_page_loads_nothing(tmp_path: Path) -> None:
    elements = write(tmp_path, hostile_set())
    assert {tag for tag, _ in elements.tags} <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "small", "table", "tr",
        "th", "td", "svg", "rect", "text", "span", "div", "figure", "img", "figcaption", "br",
        "bdi", "details", "summary",
    }  # fmt: skip
    text = "".join(elements.words)
    assert "\x1b" not in text
    for part in ("name", "note", "key", "group", "green", "left", "p"):
        assert f"{part} </p><script>alert('1')</script> <img src=http://a.b/c onerror=x>" in text
    [shown] = {fields["alt"] for tag, fields in elements.tags if tag == "img"}
    assert shown is not None and shown.startswith("green </p><script>")
    for tag, fields in elements.tags:
        assert not any(name.startswith("on") for name in fields)
        assert not {"href", "srcset", "action", "data", "xlink:href"} & {*fields}
        if "src" in fields:
            assert tag == "img"
            assert (fields["src"] or "").startswith("data:image/jpeg;base64,")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "url(" not in page and "@import" not in page
    policy = next(f["content"] for _, f in elements.tags if "http-equiv" in f)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_best_and_worst_are_shown_in_order_and_some_at_random(tmp_path: Path) -> None:
    write(tmp_path, SmallSet(9))
    page = (tmp_path / "report.html").read_text("utf-8")
    titles = ("<h2>Best</h2>", "<h2>Worst</h2>", "<h2>At random</h2>", "<h2>The run</h2>")
    parts = [page.index(title) for title in titles]
    best, worst, chance = (
        [float(iou) for iou in re.findall(r"IoU (\d\.\d+)", page[start:end])]
        for start, end in pairwise(parts)
    )
    everything = [round(number / 27, 3) for number in range(27)]
    assert best == everything[::-1][:PICKS] and worst == everything[:PICKS]
    assert len({*chance}) == PICKS and {*chance} <= {*everything}
    for data in re.findall(r"data:image/jpeg;base64,([^\"]+)", page):
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.size == (160, 96)


def test_a_picture_that_is_gone_is_named(tmp_path: Path) -> None:
    elements = write(tmp_path, SmallSet(1, missing=["0"]))
    assert "no image: image '0.png' is not there" in "".join(elements.words)


def test_the_papers_figures_stand_beside_those_of_the_same_dataset(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    known = {"source": "refcoco", "split_by": "unc", "split": "val"}
    text = " ".join(write(tmp_path / "a", SmallSet(1), **known).words)
    assert "paper: Step1X-Edit 57.56 53.94" in re.sub(r"\s+", " ", text)
    assert "arXiv 2605.13122" in text
    assert "paper" not in " ".join(write(tmp_path / "b", SmallSet(1), source="x.jsonl").words)


def test_published_figures() -> None:
    for source, by, split, name, figures in (
        ("refcoco", "unc", "testB", "Step1X-Edit", (49.60, 53.76)),
        ("refcoco+", "unc", "val", "Step1X-Edit", (44.38, 48.50)),
        ("refcoco+", "unc", "testA", "FLUX.2-klein 9B", (43.25, 46.72)),
        ("refcocog", "umd", "test", "FLUX.2-klein 9B", (46.26, 50.47)),
        ("refcocog", "umd", "val", "Step1X-Edit, CAM > 0.5", (32.82, 40.11)),
        ("refcocog", "umd", "val", "Step1X-Edit, no refinement", (48.92, 52.43)),
        ("refcoco", "google", "val", "Step1X-Edit", None),
        ("refcocog", "google", "val", "Step1X-Edit", None),
        ("refcocog", "umd", "testA", "Step1X-Edit", None),
        ("scenes", None, "test", "Step1X-Edit", None),
        ("file.jsonl", None, None, "Step1X-Edit", None),
    ):
        rows = published({"source": source, "split_by": by, "split": split})
        found = {row.name: (row.oiou, row.miou) for row in rows}
        assert found.get(name) == figures and bool(found) == (figures is not None)


def test_contours_on_a_pictures_own_colours() -> None:
    image = np.full((40, 80, 3), (90, 140, 30), np.uint8)
    found, true = np.zeros((2, 40, 80), bool)
    found[10:30, 30:70] = true[10:30, 10:50] = True
    picture = drawn(image, found, true)
    assert (picture[20, [40, 75]] == image[20, [40, 75]]).all()  # found and true, and neither
    missed, wrong = (np.abs(picture[20, x].astype(int) - image[20, x]) for x in (20, 60))
    assert missed.max() > 30 and wrong.max() > 30 and (missed != wrong).any()
    assert picture[20, 10].tolist() == list(TRUE_RGB)
    assert picture[20, 69].tolist() == list(FOUND_RGB)
    same = drawn(image, true, true)
    assert [same[20, x].tolist() for x in (7, 8, 9, 10, 11, 12)] == [
        [255] * 3, list(TRUE_RGB), list(FOUND_RGB), list(FOUND_RGB), list(TRUE_RGB), [255] * 3,
    ]  # fmt: skip
    assert drawn(image, ~found | found, true, side=20).shape == (10, 20, 3)
    with pytest.raises(InputError, match="different sizes"):
        drawn(image, found[:5], true)


def test_what_is_not_there_and_was_found_is_shown(tmp_path: Path) -> None:
    dataset = SmallSet(1)
    dataset.samples = [Sample("there", "0", "green"), Sample("gone", "0", "zebra", present=False)]
    write(tmp_path, dataset)
    page = (tmp_path / "report.html").read_text("utf-8")
    shown = page[page.index("<h2>Absent, but found</h2>") :]
    assert "zebra" in shown and "<small>gone</small>" in shown
    assert "<small>there</small>" not in shown
