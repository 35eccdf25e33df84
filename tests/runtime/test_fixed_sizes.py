"""Bundles whose graphs have fixed sizes and a fixed batch."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rism.runtime import BundleError, Segmenter
from tests.conftest import Reseal
from tests.runtime.spies import spied


@pytest.mark.parametrize("capture", ["vectors", "matrices", "scores"])
def test_the_same_answer_as_without_sizes(
    tiny_master: Path, static_bundle: Path, colours: np.ndarray, reseal: Reseal, capture: str
) -> None:
    """An image of a listed size is not resized, so a bundle that keeps sizes agrees."""
    folder = shutil.copytree(tiny_master, static_bundle.parent / "free")
    free = reseal(folder, lambda data: data["geometry"].update(resize="shrink", size_level=999))
    words = ["red", "the green", "blue"]
    wanted = Segmenter.from_bundle(free, provider="cpu", capture=capture).segment(colours, words)
    fixed = Segmenter.from_bundle(static_bundle, provider="cpu", capture=capture)
    found = fixed.segment(colours, words)
    assert fixed.manifest.captures == ("vectors", "matrices", "scores")
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.plan == theirs.plan
        np.testing.assert_allclose(ours.score_map, theirs.score_map, atol=1e-6)
        assert ours.provider == "cpu"


@pytest.mark.parametrize(
    ("size_wh", "grid_hw"),
    [((160, 96), (12, 20)), ((100, 300), (20, 12)), ((90, 80), (16, 16)), ((9, 9), (16, 16))],
)
def test_any_image_goes_to_the_nearest_size_and_back(
    static_bundle: Path, size_wh: tuple[int, int], grid_hw: tuple[int, int]
) -> None:
    width, height = size_wh
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2] = (220, 20, 20)
    image[:, width // 2 :] = (20, 20, 220)
    result = Segmenter.from_bundle(static_bundle, provider="cpu").segment(image, "red")
    assert result.score_map.shape == grid_hw
    assert result.mask.shape == (height, width)
    wrong = result.mask != (image[..., 0] > 128)
    assert wrong.mean() < 0.15


def test_a_batch_is_filled_up_and_the_surplus_dropped(
    static_bundle: Path, colours: np.ndarray
) -> None:
    segmenter, spies = spied(static_bundle, max_batch=1)
    words = ["red", "green", "blue"]
    together = segmenter.segment(colours, words)
    for name in ("clean_latents", "prompt_embeds", "prompt_weights"):
        assert spies["transformer@160x96"].batches(name) == [2, 2]
    assert [result.expression for result in together] == words
    for result in together:
        alone = segmenter.segment(colours, result.expression)
        np.testing.assert_allclose(alone.score_map, result.score_map, atol=1e-6)
        assert alone.token_attention is not None and alone.token_attention.shape[0] == 4


def test_a_batch_nobody_could_fill(tiny_bundle: Path, reseal: Reseal) -> None:
    def change(data: dict[str, Any]) -> None:
        data["graphs"]["text_encoder"]["inputs"]["input_ids"]["shape"][0] = 2**31

    with pytest.raises(BundleError, match=r"'input_ids' has a fixed batch of 2147483648, expected"):
        Segmenter.from_bundle(reseal(tiny_bundle, change), provider="cpu")


def test_a_size_is_loaded_when_an_image_needs_it(
    static_bundle: Path, colours: np.ndarray, opened: list[str]
) -> None:
    segmenter = Segmenter.from_bundle(static_bundle, provider="cpu", threads=1)
    assert opened == ["text_encoder.onnx"]
    assert segmenter.provider == "cpu"
    segmenter.segment(colours, "red")
    one = ["vae_encoder.160x96.onnx", "transformer.vectors.160x96.onnx"]
    assert opened[1:] == one
    segmenter.segment(colours[:, ::-1].copy(), "red")
    assert opened[1:] == one
    segmenter.segment(colours.transpose(1, 0, 2).copy(), "red")
    assert opened[3:] == ["vae_encoder.96x160.onnx", "transformer.vectors.96x160.onnx"]


def test_threads_load_a_size_once(
    static_bundle: Path, colours: np.ndarray, opened: list[str]
) -> None:
    segmenter = Segmenter.from_bundle(static_bundle, provider="cpu", threads=1)
    barrier = threading.Barrier(8)

    def work(_: int) -> bytes:
        barrier.wait()
        return segmenter.segment(colours, "green").mask.tobytes()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(work, range(8)))) == 1
    assert sorted(opened) == sorted(set(opened))


def test_a_broken_size_is_an_error_when_it_is_needed(
    static_bundle: Path, colours: np.ndarray, reseal: Reseal
) -> None:
    (static_bundle / "vae_encoder.96x160.onnx").write_bytes(b"no graph")
    segmenter = Segmenter.from_bundle(reseal(static_bundle), provider="cpu")
    for _ in range(2):
        with pytest.raises(BundleError, match=r"'vae_encoder.96x160.onnx' is not a graph that"):
            segmenter.segment(colours.transpose(1, 0, 2).copy(), "red")
    assert segmenter.segment(colours, "red").mask.any()
