import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray")

Make = Callable[..., list[str]]


def png(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def images(colours: np.ndarray, tmp_path: Path) -> Callable[[int], Path]:
    """Make a folder of images, no two alike."""

    def make(count: int) -> Path:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for number in range(count):
            moved = np.roll(colours, number, axis=1)
            (folder / f"{number:03}.png").write_bytes(png(moved))
        return folder

    return make


def rows_of(destination: Path) -> list[dict[str, Any]]:
    """Every row of DEST, sorted."""
    import pyarrow.parquet as pq

    rows = pq.read_table(destination).to_pylist()
    return sorted(rows, key=lambda row: (row["id"], row["expression"] or ""))
