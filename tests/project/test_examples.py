"""Each script of examples/python runs as its docstring says, with the built-in model."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.paths import EXAMPLES, ROOT

# What each script must print, and the images that it writes.
EXPECTED = {
    "segment_image.py": (r"box \(266, 244, 410, 359\), 4\.2% of the image", "mask overlay"),
    "segment_folder.py": (
        r"(?s)colour-1\.png .*: nothing, .*street\.png 'the yellow cat': box ",
        "",
    ),
    "label_map.py": (r"1 the green van: \d{5} pixels\n2 the yellow cat: \d{5} pixels", "labels"),
    "score_dataset.py": (r"rism: mIoU 0\.\d{3}.*\npublished method: .* of 10 samples", ""),
    "read_graphs.py": (r"(?s)vae_encoder: image -> .*cosine similarity 0\.\d{3}", ""),
}


def test_every_script_is_expected_to_print_something() -> None:
    assert {file.name for file in (EXAMPLES / "python").glob("*.py")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_script(name: str, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(EXAMPLES)
    (tmp_path / "runtime").symlink_to(ROOT / "runtime")
    [line] = re.findall(r"^python (.*)$", (EXAMPLES / "python" / name).read_text(), re.M)
    run = subprocess.run(
        [sys.executable, *shlex.split(line)], cwd=tmp_path, capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    printed, images = EXPECTED[name]
    assert re.search(printed, run.stdout), run.stdout
    assert {file.stem for file in tmp_path.glob("*.png")} == set(images.split())
    for file in tmp_path.glob("*.png"):
        with Image.open(file) as image:
            assert image.size == (640, 480) and np.asarray(image).any()
