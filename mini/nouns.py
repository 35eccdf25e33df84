"""What the nouns of `kinds.txt` mean, their plurals, and words that mean nothing here."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from mini.assets import kinds

T = TypeVar("T")


@cache
def phrases(section: str) -> tuple[str, ...]:
    """The entries of a section of `phrases.txt`, whose title begins like that."""
    text = (Path(__file__).parent / "phrases.txt").read_text(encoding="utf-8")
    (found,) = (part for part in text.split("\n[") if part.startswith(section))
    return tuple(entry for line in found.splitlines()[1:] for entry in line.split("; "))


def plural(noun: str) -> str:
    """The plural of a noun."""
    listed = dict(line.split(": ") for line in phrases("plurals"))
    if noun in listed or noun in always_plural():
        return listed.get(noun, noun)
    if noun.endswith(("s", "x", "ch", "sh", "z")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


@cache
def always_plural() -> frozenset[str]:
    """The nouns that have no singular."""
    return frozenset(name for kind in kinds().values() if kind.plural for name in kind.names)


@cache
def meanings() -> dict[str, frozenset[str]]:
    """The kinds that each noun, of a kind or of a group, means."""
    found: dict[str, set[str]] = {}
    for name, kind in kinds().items():
        for word in (*kind.names, *kind.groups):
            found.setdefault(word, set()).add(name)
    return {word: frozenset(names) for word, names in found.items()}


@cache
def unclear_kinds(noun: str) -> frozenset[str]:
    """The kinds of which it is open whether a noun means them."""
    means = meanings()[noun]
    last = noun.split()[-1]
    found = set[str]()
    for line in phrases("alike"):
        alike = set(line.split(", "))
        found |= alike if means & alike else set()
    for name, kind in kinds().items():
        if any(last in n.split() or n.split()[-1] in noun.split() for n in kind.names):
            found.add(name)
    return frozenset(found - means)


def unknown_noun(rng: np.random.Generator, *, test: bool) -> str:
    """A real word that no kind has, or an invented one."""
    if rng.random() < 0.5:
        return one(rng, phrases(f"unknown words for {'tests' if test else 'training'}"))
    syllables = phrases("syllables")
    stem = "".join(one(rng, syllables) for _ in range(int(rng.integers(2, 4))))
    return stem + one(rng, ("", "n", "x", "rt", "ck"))


def one(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options."""
    return options[int(rng.integers(len(options)))]
