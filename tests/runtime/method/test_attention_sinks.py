"""Attention-sink tokens: detected, and given weight 0 in a second pass."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rism.runtime import InputError, Segmenter
from rism.runtime.engines.base import Arrays, Engine
from rism.runtime.errors import BundleError
from rism.runtime.method.attention_sinks import find_sinks
from tests.runtime.spies import Spy, spied


def played(sink: int | None = 1, *, positions: int = 60, tokens: int = 8) -> np.ndarray:
    """Attention of little, uneven columns, and of one that is high and even."""
    seen = np.full((positions, tokens), 0.01, np.float32)
    seen[: positions // 4] *= 3
    if sink is not None:
        seen[:, sink] = np.linspace(0.9, 1.1, positions, dtype=np.float32)
    return seen


ONES = np.ones(8, np.float32)


def test_a_uniform_token_is_found() -> None:
    assert np.flatnonzero(find_sinks(played(1), ONES)).tolist() == [1]
    assert not find_sinks(played(None), ONES).any()
    for value in (np.inf, np.nan):
        seen = played(1)
        seen[5, 1] = value
        assert not find_sinks(seen, ONES).any()


def test_where_the_lines_are() -> None:
    """Mean over median and deviation over mean, on both sides of each bound."""
    seen = np.ones((4, 8), np.float32)
    seen[:, 0] = 5.001
    seen[:, 1] = 5
    seen[:2, 2], seen[2:, 2] = 14, 2  # a mean of 8, a deviation of 6
    assert np.flatnonzero(find_sinks(seen, ONES)).tolist() == [0]
    seen[2:, 2] = 2.01
    assert np.flatnonzero(find_sinks(seen, ONES)).tolist() == [0, 2]


def test_tokens_that_do_not_count() -> None:
    weights = ONES.copy()
    weights[1] = 0
    assert not find_sinks(played(1), weights).any()
    assert not find_sinks(played(1), np.zeros(8, np.float32)).any()
    # Two even tokens that alone count: the median is theirs.
    only = np.array([0, 1, 1, 0, 0, 0, 0, 0], np.float32)
    seen = played(1)
    seen[:, 2] = 1
    assert not find_sinks(seen, only).any()


class Played(Spy):
    """A transformer that gives each expression the token attention it is told to."""

    def __init__(self, engine: Engine, sinks: dict[int, int | None]) -> None:
        super().__init__(engine)
        self.sinks = sinks

    def run(self, feeds: Mapping[str, Any]) -> Arrays:
        outputs = dict(super().run(feeds))
        batch, positions, tokens = outputs["token_attention"].shape
        outputs["token_attention"] = np.stack(
            [played(self.sinks.get(b), positions=positions, tokens=tokens) for b in range(batch)]
        )
        return outputs


def playing(folder: Path, sinks: dict[int, int | None]) -> tuple[Segmenter, Played]:
    segmenter, spies = spied(folder)
    player = Played(spies["transformer"].engine, sinks)
    segmenter._engines["transformer"] = player
    return segmenter, player


def test_a_second_pass_without_the_sink(tiny_master: Path, colours: np.ndarray) -> None:
    segmenter, player = playing(tiny_master, {0: 3})
    result = segmenter.segment(colours, "blue red", sinks=True)
    assert [fed["prompt_weights"].tolist() for fed in player.fed] == [
        [[1] * 8],
        [[1, 1, 1, 0, 1, 1, 1, 1]],
    ]
    assert result.sinks == (3,)
    assert result.tokens[3] == "red"
    without = segmenter.segment(colours, "blue red", prompt_weights=[1, 1, 1, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(result.refined, without.refined)
    assert without.sinks == ()
    assert len(player.fed) == 3


def test_only_for_those_that_have_some(tiny_master: Path, colours: np.ndarray) -> None:
    segmenter, player = playing(tiny_master, {1: 2})
    words = ["red", "green blue", "blue"]
    together = segmenter.segment(colours, words, sinks=True)
    assert player.batches("prompt_weights") == [3, 1]
    assert [result.sinks for result in together] == [(), (2,), ()]
    assert [result.expression for result in together] == words
    plain = segmenter.segment(colours, ["red", "blue", "blue"])
    for result, expected in zip(together, plain, strict=True):
        np.testing.assert_allclose(result.refined, expected.refined, atol=1e-6)


def test_no_sinks_no_second_pass(tiny_master: Path, colours: np.ndarray) -> None:
    segmenter, player = playing(tiny_master, {})
    assert segmenter.segment(colours, "red", sinks=True).sinks == ()
    assert len(player.fed) == 1
    assert segmenter.segment(colours, "red").sinks == ()


def test_an_engine_that_leaves_it_out(tiny_master: Path, colours: np.ndarray) -> None:
    segmenter, player = playing(tiny_master, {})

    class Silent(Played):
        def run(self, feeds: Mapping[str, Any]) -> Arrays:
            return {k: v for k, v in super().run(feeds).items() if k != "token_attention"}

    segmenter._engines["transformer"] = Silent(player.engine, {})
    assert segmenter.segment(colours, "red").token_attention is None
    with pytest.raises(BundleError, match="returned no 'token_attention', expected it as the man"):
        segmenter.segment(colours, "red", sinks=True)


def test_bundles_without_attention_per_token(tiny_master: Path, colours: np.ndarray) -> None:
    own = Segmenter.from_bundle(tiny_master, provider="cpu", threads=1, capture="scores")
    with pytest.raises(InputError) as error:
        own.segment(colours, "red", sinks=True)
    assert str(error.value) == (
        "sinks are detected by attention per token, which 'transformer.scores' of this bundle does "
        "not return, expected output 'token_attention': rism export --model MODEL -o DIR "
        "--token-attention, or run without sinks"
    )
