"""Lists the samples of a dataset in order, and the problems of the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rism.evaluation.datasets.sample import Problem, Sample
from rism.runtime.errors import InputError, one_line

MAX_SENTENCE = 4096

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class ListedDataset(Generic[Entry]):
    """A dataset whose samples were listed from files. See `Dataset`.

    Attributes:
        merge: how several polygons become one mask (`decode_segmentation`).
        entries: where the image and the mask of each sample are, by its key.
    """

    name: str
    samples: Sequence[Sample]
    notes: Sequence[str]
    problems: Sequence[Problem]
    merge: str
    entries: Mapping[str, Entry]


class Listing(Generic[Entry]):
    """Collects the samples of a dataset, their entries by key, and the problems of the others."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.problems: list[Problem] = []
        self._samples: dict[str, list[Sample]] = {}

    def add(self, sample: Sample, entry: Entry) -> None:
        """List a sample; a second one of the same key is a problem."""
        if sample.key in self.entries:
            self.refuse(sample.key, "is there twice, and only the first is scored")
            return
        self.entries[sample.key] = entry
        self._samples.setdefault(sample.image, []).append(sample)

    def refuse(self, where: str, what: object, *, sentences: int = 1) -> None:
        """List a problem, with the number of sentences lost if it is not one."""
        lost = "" if sentences == 1 else f" ({sentences} sentences)"
        self.problems.append(Problem(one_line(where, limit=120), one_line(what) + lost))

    def require_samples(self, name: str) -> None:
        """Raise an `InputError` with the first problem if the dataset has no samples."""
        if not self.entries:
            first = self.problems[0] if self.problems else Problem(name, "it is empty")
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise InputError(f"nothing of {name} can be scored; {first.where}: {first.what}{more}")

    def samples(self, limit: int | None) -> tuple[Sample, ...]:
        """Return the first `limit` samples, those of an image together."""
        ordered = [sample for group in self._samples.values() for sample in group]
        return tuple(ordered[:limit])


def clean_sentence(text: object) -> str:
    """Return a sentence with its white space collapsed.

    Raises:
        InputError: it is not text, empty, or longer than 4096 characters.
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
