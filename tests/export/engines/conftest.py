"""A small random model in float16, exported as every other, with what TensorRT for RTX takes."""

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("tensorrt_rtx")
pytest.importorskip("polygraphy")

from rism.export import ExportOptions, export_bundle
from tests.export.small import SETTINGS, make_checkpoint


@pytest.fixture(scope="session")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle, which tests copy before they change it."""
    folder = tmp_path_factory.mktemp("half")
    checkpoint = make_checkpoint(
        folder / "small-klein",
        text={"head_dim": 16},
        settings={**SETTINGS, "precision": "fp16"},
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=32,
        axes_dims_rope=(8, 8, 8, 8),
    )
    options = ExportOptions(captures=("vectors", "scores"))
    return export_bundle(str(checkpoint), folder / "bundle", options).path
