"""What a dataset lists on opening: samples in order, and what is wrong with the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from rism.evaluation.datasets.sample import Problem, Sample
from rism.runtime.errors import InputError, one_line

__all__ = ["Listing", "clean_sentence"]

MAX_SENTENCE = 4096

Entry = TypeVar("Entry")


class Listing(Generic[Entry]):
    """Samples with what their dataset needs to find picture and mask again.

    Attributes:
        entries: by key of the sample.
        problems: what was left out, in the order of the file.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.problems: list[Problem] = []
        self._samples: dict[str, list[Sample]] = {}

    def add(self, sample: Sample, entry: Entry) -> None:
        """List a sample; one whose key is taken is a problem."""
        if sample.key in self.entries:
            self.refuse(sample.key, "is there twice, and only the first is scored")
            return
        self.entries[sample.key] = entry
        self._samples.setdefault(sample.image, []).append(sample)

    def refuse(self, where: str, what: object, *, sentences: int = 1) -> None:
        """List a problem, and how many sentences it takes with it where that is not one."""
        lost = "" if sentences == 1 else f" ({sentences} sentences)"
        self.problems.append(Problem(one_line(where, limit=120), one_line(what) + lost))

    @property
    def images(self) -> Sequence[str]:
        """Names of the pictures, in the order in which samples first speak of them."""
        return list(self._samples)

    def samples(self, limit: int | None) -> tuple[Sample, ...]:
        """Return the samples, those of a picture together; the first `limit` of them."""
        ordered = [sample for group in self._samples.values() for sample in group]
        return tuple(ordered[:limit])


def clean_sentence(text: object) -> str:
    """Return a sentence with its white space collapsed.

    Raises:
        InputError: it is no text, empty, or longer than 4096 characters.
    """
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    if not isinstance(text, str):
        raise InputError(f"the sentence is {one_line(repr(text), limit=40)}, expected text")
    folded = " ".join(text.split())
    if not folded:
        raise InputError("the sentence is empty")
    if len(folded) > MAX_SENTENCE:
        raise InputError(f"the sentence is longer than {MAX_SENTENCE} characters")
    return folded
