"""Questions about scenes, and many ways to ask each.

A question is only asked if no condition of it is unclear for any thing, and if it fits one thing,
all that it speaks of, or none.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mini.assets import kinds
from mini.colours import COLOUR_NAMES
from mini.conditions import Condition, Conditions, Form
from mini.nouns import always_plural, meanings, one, phrases, plural, unknown_noun
from mini.scenes import EmojiScene

# Forms of a second attribute, of what is not there, and of what several things share.
_MORE: tuple[Form, ...] = ("colour", "place", "size")
_MISSING: tuple[Form, ...] = ("colour", "colour", "relation", "place", "size")
_SHARED: tuple[Form, ...] = ("colour", "size", "place", "look", "not", "relation")
_LONGEST_IN_CAPITALS = 48  # they take twice as many tokens, and a prompt has 48 at most


@dataclass(frozen=True)
class Question:
    """A question about a scene.

    Attributes:
        text: what is asked.
        canonical: the plainest way to ask it.
        targets: the things that it means; none if it is absent.
        form: what it relies on.
        noun: kind that it names, "" where it names a group or none.
        concepts: what its words mean, for a training loss.
    """

    text: str
    canonical: str
    targets: tuple[int, ...]
    form: Form
    noun: str
    concepts: tuple[str, ...] = field(default=())


class Questions(Conditions):
    """All questions about one scene that are clear."""

    def __init__(self, scene: EmojiScene, rng: np.random.Generator, *, test: bool = False) -> None:
        super().__init__(scene, rng)
        self.test = test

    def draw(self, form: Form) -> Question | None:
        """A clear question of a form, None if none came up in a few tries."""
        for _ in range(12):
            found = self._draw(form)
            if found is not None:
                return found
        return None

    def draw_unknown(self) -> Question:
        """A question about an unknown word, which every scene allows."""
        rng = self.rng
        noun = unknown_noun(rng, test=self.test)
        before = f"{one(rng, COLOUR_NAMES)} " if rng.random() < 0.3 else ""
        beside = f" next to the {self.things[0].kind}"
        after = one(rng, ("", "", "", " on the left", " on the right", " at the top", beside))
        bare = f"{before}{noun}{after}"
        return Question(
            self._carry(f"the {bare}", bare, False), f"the {bare}", (), "unknown", "", ("unknown",)
        )

    def _draw(self, form: Form) -> Question | None:
        rng, things = self.rng, self.things
        target = int(rng.integers(len(things)))
        names = kinds()[things[target].kind]
        if form == "unknown":
            return self.draw_unknown()
        if form == "absent":
            return self._absent(target)
        word = names.names[0] if rng.random() < 0.6 else one(rng, names.names)
        if names.groups and rng.random() < 0.08:
            word = one(rng, names.groups)
        if form not in ("kind", "all") and rng.random() < 0.2:
            word = one(rng, ("one", "thing", "object"))
        among = self.noun(word)
        if (among == 0).any() or meanings().get(word, frozenset()) & set(self.scene.shown):
            return None
        parts: list[Condition] = []
        if form != "kind" and not (form == "all" and rng.random() < 0.5):
            wanted = one(rng, _SHARED) if form == "all" else form
            part = self.part(wanted, among, target)
            if part is None:
                return None
            parts.append(part)
            # A second attribute, which is true as well.
            if form != "all" and rng.random() < 0.2:
                extra = self.part(one(rng, _MORE), among, target)
                if extra is not None and extra.form != part.form and (extra.before or part.before):
                    parts.append(extra)
        fits = np.min([among, *(part.fits for part in parts)], axis=0)
        targets = tuple(np.flatnonzero(fits == 1).tolist())
        if not targets or (form == "all") != (len(targets) > 1) or (fits == 0).any():
            return None
        if form == "all" and (word in ("one", "object") or word in always_plural()):
            return None
        return self._say(form, word, parts, targets)

    def _absent(self, target: int) -> Question | None:
        """A question that fits nothing: another kind, colour, place, size or relation."""
        rng = self.rng
        thing = self.things[target]
        word, parts = thing.kind, list[Condition]()
        if rng.random() < 0.55:
            word = one(rng, sorted(kinds()))
            if meanings()[word] & set(self.scene.shown):
                return None
            if rng.random() < 0.4:
                anything = np.ones(len(self.things), np.int8)
                other = self.part(one(rng, _MORE), anything, target)
                parts = [] if other is None else [other]
        else:
            wanted = one(rng, _MISSING)
            if wanted == "colour":
                index = int(rng.integers(len(COLOUR_NAMES)))
                name = (COLOUR_NAMES[index],)
                parts = [Condition("colour", self.colour(index), name, True, name)]
            else:  # what is true of another thing
                among = np.ones(len(self.things), np.int8)
                part = self.part(wanted, among, int(rng.integers(len(self.things))))
                if part is None or set(part.words) & set(phrases("comparisons")):
                    return None
                parts = [part]
        fits = np.min([self.noun(word), *(part.fits for part in parts)], axis=0)
        return self._say("absent", word, parts, ()) if (fits == -1).all() else None

    def _say(
        self, form: Form, word: str, parts: list[Condition], targets: tuple[int, ...]
    ) -> Question:
        """Put a question into words."""
        rng = self.rng
        many = form == "all"
        noun = plural(word) if many else word
        lead, said = "the ", self._phrase(noun, parts, plain=False)
        if many:
            number = ("two", "three", "four", "five", "six", "seven", "eight")[len(targets) - 2]
            every = f"all {number} " if len(targets) > 2 else "both "
            leads = (
                "all the ",
                "all ",
                "all of the ",
                "the ",
                f"the {number} ",
                every,
                "",
                "every ",
            )
            lead = one(rng, leads)
            said = self._phrase(word, parts, plain=False) if lead == "every " else said
        canonical = ("all the " if many else "the ") + self._phrase(noun, parts, plain=True)
        concepts = tuple(c for part in parts for c in part.concepts) + (("all",) if many else ())
        means = meanings().get(word, frozenset())
        kind = word if word in kinds() else next(iter(means)) if len(means) == 1 else ""
        concepts += tuple(f"anchor {part.anchor}" for part in parts if part.anchor)
        concepts += (f"noun {kind}",) if kind else (word,) if word in meanings() else ()
        text = self._carry(f"{lead}{said}", said, many)
        return Question(text, canonical, targets, form, kind, concepts)

    def _phrase(self, noun: str, parts: list[Condition], *, plain: bool) -> str:
        before, after = list[str](), list[str]()
        for part in parts:
            text = part.words[0] if plain else one(self.rng, part.words)
            text, _, tail = text.partition("|")
            (before if part.before else after).append(text)
            if tail:
                after.append(tail)
        if not plain and len(before) > 1 and self.rng.random() < 0.5:
            before.reverse()
        return " ".join([*before, noun, *after])

    def _carry(self, definite: str, bare: str, many: bool) -> str:
        """The phrase as it is, without its article, or in a sentence; with case and typos."""
        rng = self.rng
        draw = rng.random()
        text = definite if draw < 0.4 else bare if draw < 0.55 and not many else ""
        if not text:
            carriers = phrases(f"sentences for {'tests' if self.test else 'training'}")
            if not many:
                carriers = tuple(c for c in carriers if not c.startswith("where are"))
            article = "an " if bare[0] in "aeiou" else "a "
            text = one(rng, carriers).format(the=definite, a=definite if many else article + bare)
            if rng.random() < 0.15 and not many and " one" not in definite:
                like = one(rng, ("the one that is", "the thing that looks like"))
                text = f"{like} {article}{bare}"
        if rng.random() < 0.15:
            first = rng.random() < 0.6 or len(text) > _LONGEST_IN_CAPITALS
            text = text[0].upper() + text[1:] if first else text.upper()
        if rng.random() < 0.12:
            text += one(rng, ("?", ".", "!"))
        return _misspelt(text, rng) if rng.random() < 0.05 else text


def _misspelt(text: str, rng: np.random.Generator) -> str:
    """Swap, drop or double one letter of a word of five letters or more."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not long:
        return text
    index = long[int(rng.integers(len(long)))]
    word, at = words[index], int(rng.integers(1, len(words[index]) - 1))
    change: Callable[[], str] = [
        lambda: word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        lambda: word[:at] + word[at + 1 :],
        lambda: word[:at] + word[at] + word[at:],
    ][int(rng.integers(3))]
    words[index] = change()
    return " ".join(words)
