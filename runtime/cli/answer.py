"""One picture of `rism run`: from its file to the bytes of all that is written about it.

Nothing is written here: this part runs in threads, and files appear in the order of the pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from rism.runtime.cli.outputs import Destination
from rism.runtime.cli.report import result_record, summary_line
from rism.runtime.cli.sources import Source
from rism.runtime.errors import InputError, one_line
from rism.runtime.image.loading import load_image
from rism.runtime.options import SegmentOptions
from rism.runtime.result.rendering import Uint8, encode_png, overlay, render
from rism.runtime.result.segmentation import Segmentation
from rism.runtime.segmenter import Segmenter

__all__ = ["Answer", "PictureError", "Question"]


class PictureError(InputError):
    """A picture that cannot be answered for, where another could."""


@dataclass(frozen=True)
class Answer:
    """What is delivered for one expression on one picture.

    Attributes:
        files: where to and what; None for stdout.
        record: its entry of the JSON; None where there is none.
        line: what was found, for people.
        detail: what it took, for those who ask.
        warning: why the picture is none for the model, or None.
    """

    files: tuple[tuple[Path | None, bytes], ...]
    record: dict[str, Any] | None
    line: str
    detail: str
    warning: str | None


@dataclass(frozen=True)
class Question:
    """What is asked of every picture.

    Attributes:
        segmenter: whom to ask.
        expressions: what to find.
        choices: how; see `rism.runtime.options`.
        reworded: a refiner looks at each picture, and may fail on some.
        destination: what is wanted, and where.
        slugs: the expressions as parts of names.
    """

    segmenter: Segmenter
    expressions: tuple[str, ...]
    choices: SegmentOptions
    reworded: bool
    destination: Destination
    slugs: tuple[str, ...]

    def answer(self, source: Source) -> list[Answer]:
        """Segment one picture and draw what is wanted of it.

        Raises:
            PictureError: the picture cannot be read or is of no size for the model, or a refiner
                failed on it.
            InputError: an expression or an option that no picture can be asked with.
        """
        try:
            start = perf_counter()
            pixels = load_image(source.open())
            pixels.flags.writeable = False  # a state keeps it as it is
            took = (perf_counter() - start) * 1e3
            state = self.segmenter.set_image(pixels)
        except InputError as error:
            raise PictureError(str(error)) from error
        try:
            found = self.segmenter.segment(state, self.expressions, **self.choices)
        except InputError as error:
            # Expressions and choices are the same for every picture. What a refiner says is not.
            if self.reworded:
                raise PictureError(str(error)) from error
            raise
        shared = {**state.timings_ms, "image": state.timings_ms.get("image", 0.0) + took}
        results = [_with_timings(result, shared, len(found)) for result in found]
        return [
            self._drawn(source, pixels, results, at, state.unlike) for at in range(len(results))
        ]

    def _drawn(
        self,
        source: Source,
        pixels: Uint8,
        results: list[Segmentation],
        at: int,
        unlike: str | None,
    ) -> Answer:
        """Draw one result; with the first, the overlay of all of them."""
        wanted, result = self.destination, results[at]
        files: list[tuple[Path | None, bytes]] = []
        written: list[Path] = []
        for kind in wanted.kinds:
            path = None if wanted.to_stdout else wanted.path(source.stem, self.slugs[at], kind)
            written += [] if path is None else [path]
            if kind != "overlay":
                files.append((path, encode_png(render(result, pixels, kind))))
            elif at == 0:
                files.append((path, encode_png(overlay(pixels, results))))
        stages = ", ".join(f"{name} {ms:.1f}" for name, ms in result.timings_ms.items())
        return Answer(
            tuple(files),
            result_record(source.label, result, written) if wanted.as_json else None,
            summary_line(source.label, result, written),
            f'{one_line(source.label)}: "{result.instruction}", {stages} ms',
            None if unlike is None else f"{one_line(source.label)}: {unlike}",
        )


def _with_timings(result: Segmentation, shared: dict[str, float], share: int) -> Segmentation:
    """Give each expression its part of the picture's own time."""
    own = {stage: milliseconds / share for stage, milliseconds in shared.items()}
    return replace(result, timings_ms={**own, **result.timings_ms})
