"""The reader in docs/bundle.md is a program: it runs, and finds what the runtime finds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rism.runtime import Segmenter

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/bundle.md").read_text()


@pytest.mark.parametrize("picture", ["street.png", "colour-2.png"])
def test_the_reader_of_the_bundle_page(picture: str, tmp_path: Path) -> None:
    [program] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    source, output = ROOT / "examples" / picture, tmp_path / "mask.png"
    bundle = ROOT / "runtime/bundles/mini"
    command = [
        sys.executable,
        "-c",
        program,
        str(bundle),
        str(source),
        "the green van",
        str(output),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = np.asarray(Image.open(output)) > 127
    ours = Segmenter.from_bundle(provider="cpu").segment(source, "the green van").mask
    assert (found != ours).mean() < 1e-3
