"""Which blocks a choice names, which tokens are noisy, and a bundle that reads less."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from diffusers import Flux2Transformer2DModel

from rism.export import ExportOptions, export_bundle
from rism.export.capture_blocks import choose_blocks, noisy_tokens
from rism.export.families.find import find_checkpoint
from rism.export.families.flux2.klein import open_klein
from rism.export.families.flux2.reference import reference_capture
from rism.export.parity.gate import run_graph
from rism.runtime import Segmenter
from rism.runtime.bundle.reader import Bundle
from rism.runtime.errors import InputError
from tests.export.small import feeds


@pytest.mark.parametrize(
    ("choice", "blocks"),
    [
        ("all", [0, 1, 2, 3, 4, 5, 6]),
        ("deep", [2, 3, 4, 5, 6]),
        ("to-features", [0, 1, 2, 3, 4]),
        ("3", [3]),
        ("1-3", [1, 2, 3]),
        ("5-99", [5, 6]),
        ("every:3", [0, 3, 6]),
        ("deep, to-features, every:2", [2, 4]),
        ("every:2,deep", [2, 4, 6]),
    ],
)
def test_each_part_of_a_choice_leaves_some_blocks(choice: str, blocks: list[int]) -> None:
    assert list(choose_blocks(choice, double=2, single=5, feature_block=4)) == blocks


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("shallow", "'shallow', expected all, deep"),
        ("", "'', expected all, deep"),
        ("every:0", "'every:0', expected"),
        ("7", "leave none of the model's 7"),
        ("3-1", "leave none"),
    ],
)
def test_choices_that_name_no_block(choice: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_blocks(choice, double=2, single=5, feature_block=4)


def test_noisy_tokens_are_those_of_every_other_row_and_column() -> None:
    assert noisy_tokens((4, 6), 2).tolist() == [0, 2, 4, 12, 14, 16]
    # As many for every grid of 15 tokens: 4 of the 6 there would be.
    assert noisy_tokens((3, 5), 2).tolist() == [0, 2, 4, 10]
    assert noisy_tokens((1, 3), 8).tolist() == [0]
    assert noisy_tokens((2, 3), 1).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def fast(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("less") / "fast"
    options = ExportOptions(
        captures=("vectors", "matrices"),
        token_attention=True,
        preset="fast",
        size_level=64,
        template="segment {expression}",
    )
    return export_bundle(str(checkpoint), folder, options).path


@pytest.mark.parametrize("grid_hw", [(6, 6), (5, 9), (1, 3)])
def test_a_graph_that_reads_less_reads_the_same(
    checkpoint: Path, fast: Path, grid_hw: tuple[int, int]
) -> None:
    spec = open_klein(find_checkpoint(str(checkpoint))).spec
    given, last = feeds(spec, grid_hw), spec.feature_block
    kept = torch.from_numpy(noisy_tokens(grid_hw, 2))
    inputs = {name: torch.from_numpy(value) for name, value in given.items()}
    inputs.pop("positions")
    inputs["noise"] = inputs["noise"][:, kept]
    whole = Flux2Transformer2DModel.from_pretrained(checkpoint / "transformer").eval()
    reference = reference_capture(
        whole, grid_hw=grid_hw, feature_block=last, timestep=1.0, noisy_tokens=kept, **inputs
    )
    for mode in ("vectors", "matrices"):
        got = run_graph(fast / f"transformer.{mode}.onnx", given)
        for name, wanted in (
            ("attention_vectors", reference.attention_vectors[:, : last + 1]),
            ("features", reference.features["mmsa"]),
            ("token_attention", reference.token_attention[:, : last + 1].sum(1)),
        ):
            np.testing.assert_allclose(got[name], wanted.numpy(), atol=1e-5, err_msg=name)
    graph = ir.load(fast / "transformer.vectors.onnx").graph
    singles = {name.split(".")[2] for name in graph.initializers if ".single_" in name}
    assert singles == {str(n) for n in range(last - spec.double_blocks)}
    method = Bundle.open(fast).manifest.method
    assert method.capture_blocks == tuple(range(last + 1))
    assert (method.noisy_grid, method.double_blocks + method.single_blocks) == (2, spec.blocks)


def test_the_size_level_of_the_paper_and_an_instruction(fast: Path) -> None:
    manifest = Bundle.open(fast).manifest
    assert (manifest.geometry.resize, manifest.geometry.remainder) == ("always", "stretch")
    assert manifest.noise.shape[0] == (64 // 4) ** 2
    segmenter = Segmenter.from_bundle(fast, provider="cpu")
    image = np.random.default_rng(0).integers(0, 255, (22, 33, 3), dtype=np.uint8)
    small = segmenter.set_image(image).plan
    # Enlarged to about 64 x 64 pixels, whole tokens, nothing cut off.
    assert small.resized_wh == (76, 52)
    assert small.crop_xyxy == (0, 0, 76, 52)
    assert segmenter.segment(image, "the van").instruction == "segment the van"
