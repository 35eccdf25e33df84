"""Questions mean what they say, in every way that they are asked."""

import numpy as np
import pytest

from mini.assets import kinds
from mini.colours import COLOUR_NAMES
from mini.conditions import FORMS
from mini.nouns import meanings, phrases, plural, unknown_noun
from mini.scenes import SceneMaker
from mini.words import Question, Questions


@pytest.fixture(scope="module")
def asked(stage: SceneMaker) -> list[tuple[list, Question]]:
    found = []
    for index in range(120):
        scene = stage.scene((index,), split="test", size_wh=(96, 96))
        questions = Questions(scene, np.random.default_rng(index), test=bool(index % 2))
        for form in FORMS:
            question = questions.draw(form)
            if question is not None:
                found.append((list(scene.things), question))
    return found


def test_every_form_comes_up(asked: list[tuple[list, Question]]) -> None:
    for form in set(FORMS) - {"look"}:  # our drawings have no word for their style
        assert sum(question.form == form for _, question in asked) >= 10, form


def test_questions_mean_one_thing_all_or_none(asked: list[tuple[list, Question]]) -> None:
    for things, question in asked:
        count = len(question.targets)
        if question.form in ("absent", "unknown"):
            assert count == 0
        elif question.form == "all":
            assert count > 1
        else:
            assert count == 1
        if question.noun and count:
            assert {things[i].kind for i in question.targets} == {question.noun}
        if question.form == "kind" and question.noun:
            assert sum(thing.kind == question.noun for thing in things) == 1


def test_colours_and_sides_are_true(asked: list[tuple[list, Question]]) -> None:
    checked = 0
    for things, question in asked:
        words = question.canonical.split()
        if question.form == "colour" and len(words) == 3 and words[1] in COLOUR_NAMES:
            colour = COLOUR_NAMES.index(words[1])
            rivals = [t for t in things if not question.noun or t.kind == question.noun]
            best = max(rivals, key=lambda thing: thing.colours[colour])
            assert best is things[question.targets[0]]
            checked += 1
        if question.form == "place" and words[1] in ("leftmost", "rightmost") and question.noun:
            rivals = [t for t in things if t.kind == question.noun]
            end = min if words[1] == "leftmost" else max
            assert end(rivals, key=lambda t: t.centre[0]) is things[question.targets[0]]
            checked += 1
    assert checked >= 15


def test_plurals_and_unknown_words() -> None:
    assert [plural(n) for n in ("dog", "bus", "cherries", "mouse", "strawberry", "key")] == [
        "dogs", "buses", "cherries", "mice", "strawberries", "keys",
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    words = {test: {unknown_noun(rng, test=test) for _ in range(300)} for test in (True, False)}
    assert not {word for word in words[True] & words[False] if len(word) > 6}
    assert {kind for line in phrases("alike") for kind in line.split(", ")} <= kinds().keys()
    assert not (words[True] | words[False]) & meanings().keys()
