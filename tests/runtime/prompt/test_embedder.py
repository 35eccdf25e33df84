"""Embeddings of prompts with an image: the caches in memory and on disk."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rism.runtime import BundleError, InputError, ProviderError, Segmenter
from rism.runtime.bundle.manifest import parse_manifest
from rism.runtime.prompt.embedder import PromptEmbedder
from rism.runtime.prompt.embedding_cache import EmbeddingCache
from tests.broken_manifests import change
from tests.conftest import Reseal
from tests.runtime.spies import spied
from tests.runtime.vision_language import WORDS


def test_an_image_is_encoded_once(vision_bundle: Path, colours: np.ndarray) -> None:
    segmenter, spies = spied(vision_bundle, max_batch=2)
    first = segmenter.segment(colours, WORDS)
    assert len(spies["vision_encoder"].fed) == 1
    assert set(first[0].timings_ms) == {
        "image", "vae", "vision", "text", "transformer", "method", "mask",
    }  # fmt: skip
    again = segmenter.segment(colours.copy(), [*WORDS, "another"])
    assert len(spies["vision_encoder"].fed) == len(spies["vae_encoder"].fed) == 1
    runs = len(spies["text_encoder"].fed)
    for one, other in zip(first, again, strict=False):
        np.testing.assert_array_equal(one.score_map, other.score_map)
    segmenter.segment(colours[:, ::-1].copy(), WORDS[:1])
    assert len(spies["vision_encoder"].fed) == 2
    assert len(spies["text_encoder"].fed) == runs + 1  # the same words of another image


def test_a_state_serves_any_number_of_calls(vision_bundle: Path, colours: np.ndarray) -> None:
    segmenter, spies = spied(vision_bundle)
    state = segmenter.set_image(colours)
    assert state.view is not None and spies["vision_encoder"].fed == []
    for word in WORDS:
        segmenter.segment(state, word)
    assert len(spies["vision_encoder"].fed) == 1


def test_a_cache_by_image_and_words(
    vision_bundle: Path, tmp_path: Path, colours: np.ndarray, opened: list[str]
) -> None:
    def run(image: np.ndarray, words: list[str]) -> list[bytes]:
        opened.clear()
        segmenter = Segmenter.from_bundle(
            vision_bundle, provider="cpu", threads=1, cache_dir=tmp_path / "c"
        )
        assert sorted(opened) == ["transformer.onnx", "vae_encoder.onnx"]
        return [result.score_map.tobytes() for result in segmenter.segment(image, words)]

    first = run(colours, WORDS)
    assert sorted(opened[2:]) == ["text_encoder.onnx", "vision_encoder.onnx"]
    entries = sorted((tmp_path / "c").glob("*.npy"))
    assert len(entries) == len(WORDS)
    assert len({np.load(entry).shape for entry in entries}) > 1  # as long as each prompt is
    assert run(colours, WORDS) == first
    assert len(opened) == 2
    run(colours[:, ::-1].copy(), WORDS[:1])
    assert len(opened) == 4
    assert len(list((tmp_path / "c").glob("*.npy"))) == len(WORDS) + 1


def test_a_name_has_all_that_changes_an_embedding(vision_bundle: Path, tmp_path: Path) -> None:
    data = json.loads((vision_bundle / "manifest.json").read_text())
    cache = EmbeddingCache(tmp_path, parse_manifest(data), provider="cpu")
    cache.put("x", np.ones((5, 3), np.float32), image="p")
    assert cache.get("x", image="p", rows=5) is not None
    for way, value in (
        ("files vision_encoder.onnx sha256", "0" * 64),
        ("prompt vision mean", [0.1, 0.2, 0.3]),
        ("prompt quotes start", 0),
    ):
        other = EmbeddingCache(tmp_path, parse_manifest(change(data, way, value)), provider="cpu")
        assert other.get("x", image="p", rows=5) is None, way


def test_there_must_be_an_image(vision_bundle: Path, colours: np.ndarray) -> None:
    segmenter = Segmenter.from_bundle(vision_bundle, provider="cpu")
    said = [segmenter._encoder.instruct("van")]
    embedder = segmenter._embedder
    assert isinstance(embedder, PromptEmbedder)
    with pytest.raises(InputError, match="text encoder needs an image, expected one to emb"):
        embedder.embed(said)
    blind = replace(segmenter.set_image(colours), view=None)
    with pytest.raises(InputError, match="has no view for the text encoder, expected"):
        segmenter.segment(blind, "van")


@pytest.mark.parametrize(
    ("vision", "prompt", "says"),
    [
        ({"patch_px": 8, "merge": 1, "frames": 1}, {}, r"image_embeds|failed on cpu"),
        ({}, {"drop": 4}, r"returned 'prompt_embeds' of shape .*, expected \(1, "),
    ],
)
def test_another_number_of_embeddings(
    vision_bundle: Path, reseal: Reseal, colours: np.ndarray, vision: Any, prompt: Any, says: str
) -> None:
    def edit(data: dict[str, Any]) -> None:
        data["prompt"]["vision"] |= vision
        data["prompt"] |= prompt

    with pytest.raises((BundleError, ProviderError), match=says):
        Segmenter.from_bundle(reseal(vision_bundle, edit), provider="cpu").segment(colours, "van")
