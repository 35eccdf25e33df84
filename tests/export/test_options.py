"""Fixed sizes, streamed memory, and what an interrupted export leaves."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from benchmarks.harness.child_process import peak_of
from rism.export import ExportOptions, ExportReport, Progress, export_bundle
from rism.export.output_folder import atomic_folder
from rism.runtime import Segmenter
from rism.runtime.bundle.reader import Bundle
from tests.export.small import make_checkpoint

STATIC = ((96, 64), (64, 64))


@pytest.fixture(scope="module")
def static(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """Graphs of two fixed sizes."""
    output = tmp_path_factory.mktemp("static") / "b"
    options = ExportOptions(captures=("vectors", "scores"), sizes=STATIC)
    return export_bundle(str(checkpoint), output, options)


def picture(width: int, height: int) -> np.ndarray:
    rng = np.random.default_rng(width)
    coarse = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def test_fixed_sizes_share_their_weights(static: ExportReport) -> None:
    files = {path.name for path in static.path.iterdir()}
    assert {"transformer.vectors.96x64.onnx", "transformer.scores.64x64.onnx"} <= files
    assert {name for name in files if name.endswith(".weights")} == {
        "text_encoder.weights",
        "vae_encoder.weights",
        "transformer.weights",
    }
    for graph in static.path.glob("*.onnx"):
        onnx.checker.check_model(str(graph))


def test_nothing_is_free_in_a_graph_of_fixed_size(static: ExportReport) -> None:
    manifest = Bundle.open(static.path).manifest
    assert manifest.geometry.sizes == STATIC
    for name, graph in manifest.graphs.items():
        if name == "text_encoder":
            continue
        for tensor in [*graph.inputs.values(), *graph.outputs.values()]:
            assert all(isinstance(size, int) for size in tensor.shape), (name, tensor)
    tokens = manifest.graphs["transformer.vectors@96x64"].inputs["clean_latents"].shape[1]
    assert tokens == (96 // 4) * (64 // 4)


def test_fixed_sizes_segment_as_the_free_one_does(
    static: ExportReport, exported: ExportReport
) -> None:
    """An image of exactly a fixed size passes unchanged through both."""
    dynamic = Segmenter.from_bundle(exported.path, provider="cpu")
    fixed = Segmenter.from_bundle(static.path, provider="cpu")
    for width, height in STATIC:
        image = picture(width, height)
        expressions = ["the red car", "the small dog", "the green van"]
        for one, other in zip(
            dynamic.segment(image, expressions), fixed.segment(image, expressions), strict=True
        ):
            np.testing.assert_allclose(one.score_map, other.score_map, atol=1e-4)
    odd = fixed.segment(picture(131, 90), "the red car")
    assert odd.mask.shape == (90, 131)


def test_fixed_sizes_are_compared_on_a_small_picture_where_blocks_are(
    checkpoint: Path, tmp_path: Path
) -> None:
    """At 1024 x 1024 the reference model would store 10 GB per block."""
    options = ExportOptions(sizes=((512, 512),), parity="blocks")
    report = export_bundle(str(checkpoint), tmp_path / "b", options)
    assert {"vae_encoder", "transformer.vectors"} <= set(report.parity)
    assert not list(report.path.glob("sample.*"))


class Stop(Progress):
    """Stops an export at its n-th piece of weights."""

    def __init__(self, pieces: int) -> None:
        self.left = pieces

    def advance(self, count: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def test_an_interrupt_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        export_bundle(str(checkpoint), tmp_path / "b", progress=Stop(pieces=60))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_no_bundle_and_is_removed_by_the_next(tmp_path: Path) -> None:
    writing = """
import sys, time
from pathlib import Path
from rism.export.output_folder import atomic_folder
with atomic_folder(Path(sys.argv[1])) as work:
    (work / "transformer.vectors.onnx").touch()
    time.sleep(600)
"""
    run = subprocess.Popen([sys.executable, "-c", writing, str(tmp_path / "b")])
    while not list(tmp_path.glob(".b.*/*.onnx")):
        assert run.poll() is None
        time.sleep(0.02)
    run.kill()
    run.wait(timeout=900)
    (left,) = tmp_path.iterdir()
    assert not (left / "manifest.json").exists()
    with pytest.raises(Exception, match="no manifest"):
        Bundle.open(left)
    foreign = tmp_path / ".b.mine"
    foreign.mkdir()
    with atomic_folder(tmp_path / "b") as work:
        assert not left.exists()
        # Another export to the same place, while this one is at work.
        with atomic_folder(tmp_path / "b") as other:
            assert work.exists()
            assert other != work
        assert work.exists()
        (tmp_path / "b").rmdir()
    assert (tmp_path / "b").is_dir()
    assert foreign.is_dir()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_weights(tmp_path: Path) -> None:
    """A table of 600 MB goes through an export that has no room for it."""
    make_checkpoint(
        tmp_path / "checkpoint",
        text={"vocab_size": 600_000, "hidden_size": 256, "tie_word_embeddings": True},
        joint_attention_dim=768,
    )
    libraries = export_peak("--model", "nothing at all", "-o", str(tmp_path / "no"))
    peak = export_peak(
        *("--model", str(tmp_path / "checkpoint"), "-o", str(tmp_path / "b")),
        *("--parity", "blocks", "--quiet"),
    )
    size = (tmp_path / "b" / "text_encoder.weights").stat().st_size
    assert size > 600_000_000
    assert peak - libraries < 450_000_000, (peak, libraries)


def export_peak(*arguments: str) -> int:
    """Peak memory of one `rism export`, in bytes, whatever came of it."""
    return peak_of(("-m", "rism", "export", *arguments), check=False)
