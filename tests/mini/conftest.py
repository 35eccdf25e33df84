"""Sprites without a download: our own drawings."""

import json
from pathlib import Path

import numpy as np
import pytest

from mini.assets import drawn_sprites
from mini.scenes import HELD_OUT, SceneMaker


@pytest.fixture(scope="session")
def sprites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("skimage")
    folder = tmp_path_factory.mktemp("sprites")
    found = list(drawn_sprites())
    # The same things in white stand for a style that is only for tests.
    rows = [[style, kind, which] for style, kind, which, _ in found]
    held = [i for i, row in enumerate(rows) if row[2] == "white"]
    rows += [[HELD_OUT[0], *rows[i][1:]] for i in held]
    pixels = np.stack([sprite for *_, sprite in found])
    np.save(folder / "sprites.npy", np.concatenate([pixels, pixels[held]]))
    (folder / "sprites.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="session")
def stage(sprites: Path) -> SceneMaker:
    return SceneMaker(sprites)
