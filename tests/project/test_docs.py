"""The reader in docs/bundle.md is a program: it runs, and finds what the runtime finds."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rism.export.families.find import BUILT_IN, published_models
from rism.runtime import Segmenter
from tests.paths import EXAMPLES, MINI, ROOT, STREET

PAGE = (ROOT / "docs/bundle.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), EXAMPLES / "cpp/README.md"])


@pytest.mark.parametrize("picture", ["street.png", "colour-2.png"])
def test_the_reader_of_the_bundle_page(picture: str, tmp_path: Path) -> None:
    [program] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    source, output = EXAMPLES / picture, tmp_path / "mask.png"
    command = [sys.executable, "-c", program, MINI, source, "the green van", output]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = np.asarray(Image.open(output)) > 127
    ours = Segmenter.from_bundle(provider="cpu").segment(source, "the green van", paper=True).mask
    assert (found != ours).mean() < 1e-3


def test_the_map_has_every_package() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    listed = set(re.findall(r"^\| `([\w/<>]+)/` \|", page, re.MULTILINE))
    packages = {
        re.sub(r"^(export/families)/\w+", r"\1/<family>", str(file.parent.relative_to(ROOT)))
        for half in ("runtime", "export", "calibration", "evaluation", "serve", "batch", "rism/cli")
        for file in (ROOT / half).rglob("__init__.py")
    }
    assert packages <= listed
    assert all((ROOT / each).is_dir() for each in listed - {"export/families/<family>"})


def test_models_that_are_named_exist() -> None:
    named = {
        name for page in PAGES for name in re.findall(r"--model ([a-z][\w.-]*)", page.read_text())
    }
    assert named and named <= {*BUILT_IN, *published_models()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_points_to_is_there(page: Path) -> None:
    for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), target
        if heading:
            assert heading in _anchors(file.read_text()), f"{target}#{heading}"


def _anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings as GitHub and the docs site make them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


def test_the_c_plus_plus_readme_says_how_its_mask_differs() -> None:
    text = " ".join((EXAMPLES / "cpp/README.md").read_text().split())
    [figure] = re.findall(r"masks have an IoU of ([0-9.]+)\.", text)
    segmenter = Segmenter.from_bundle(provider="cpu")
    plain, paper = (
        segmenter.segment(STREET, "the green van", paper=paper).mask for paper in (False, True)
    )
    assert f"{(plain & paper).sum() / (plain | paper).sum():.2f}" == figure
