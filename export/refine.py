"""Instructions in the words of a model family's own refiner, into a file (docs/refine.md)."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rism.export.language_files import find_language_model
from rism.export.language_model import LONGEST_SIDE, MAX_PIXELS, MIN_PIXELS, LanguageModel
from rism.export.prompts import TEMPLATE
from rism.runtime.atomic import write_atomically
from rism.runtime.errors import InputError, OutputError, one_line
from rism.runtime.images import load_image
from rism.runtime.instructions import (
    MAX_ENTRIES,
    Fact,
    InstructionFile,
    Origin,
    RefinedInstruction,
    picture_digest,
)
from rism.runtime.prompt import check_template, clean_expression

__all__ = ["RefineProgress", "RefineReport", "refine_instructions", "unquote"]

PRECISIONS = ("bf16", "fp32")
PROVIDERS = ("auto", "cpu", "cuda")
MAX_NEW_TOKENS = 128
_MOST_NEW_TOKENS = 2048
_SAVE_EVERY_S = 1.0
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "「": "」"}  # noqa: RUF001
_MARK = "{expression}"


class RefineProgress(Protocol):
    """Who is told of a run while it goes on."""

    def stage(self, text: str) -> None:
        """Something long begins, or is worth knowing."""

    def step(self, done: int, total: int, name: str) -> None:
        """`done` of `total` answers are there, `name` is the next picture."""

    def failed(self, text: str) -> None:
        """A picture or an instruction is left out, and why."""


class _Silent:
    def stage(self, text: str) -> None: ...

    def step(self, done: int, total: int, name: str) -> None: ...

    def failed(self, text: str) -> None: ...


@dataclass(frozen=True)
class RefineReport:
    """What a run did.

    Attributes:
        output: the file.
        answered: instructions that were reworded now.
        kept: instructions that were in the file already.
        failures: one line for each picture or instruction that was left out.
        device: where the model ran; empty where nothing was left to ask.
        precision: what it computes in.
    """

    output: Path
    answered: int
    kept: int
    failures: tuple[str, ...]
    device: str
    precision: str


@dataclass(frozen=True)
class _Job:
    path: Path
    expression: str
    instruction: str


def refine_instructions(
    model: str,
    images: Sequence[str | Path],
    expressions: Sequence[str],
    output: str | Path,
    *,
    template: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    max_new_tokens: int = MAX_NEW_TOKENS,
    precision: str | None = None,
    provider: str = "auto",
    progress: RefineProgress | None = None,
) -> RefineReport:
    """Reword the instruction of every expression for every picture, and write them to a file.

    What the file holds already, by the same model and settings, is not asked again; it is
    written at least every second while answers come, and when the run is interrupted.

    Args:
        model: "step1x", "step1x-v1.1", "step1x-v1.2", a folder or a hub id (see
            `find_language_model`).
        images: picture files.
        expressions: what is to be found in each of them.
        output: the JSON file to make, or to add to.
        template: the instruction, with {expression} in it; None for "remove {expression}".
        revision: branch, tag or commit on the hub.
        offline: use only what the hub's cache already holds.
        max_new_tokens: an answer is cut there.
        precision: "bf16" or "fp32"; None for what the weights are published in.
        provider: "cpu", "cuda", or "auto" for CUDA where it is; the report says which.
        progress: told of stages, steps and failures.

    Raises:
        InputError: An expression, an option or all pictures cannot be used, or the file has
            answers of another model or other settings.
        OutputError: The file cannot be written.
        CheckpointError: The model cannot be found or read.
        UnsupportedModelError: Its family has no refiner.
        ExportError: Not enough memory.
    """
    run = _Run(Path(output), progress or _Silent())
    told = _instructions(expressions, template)
    _check_options(max_new_tokens, precision, provider)
    _check_place(run.output)
    pictures = run.digests([Path(image) for image in images])
    files = find_language_model(model, revision=revision, offline=offline, weights=False)
    language_model = LanguageModel(files)
    for text in told.values():
        _refuse_control_tokens(text, "the instruction", language_model)
    precision = precision or files.default_precision()
    if not files.commit:
        run.progress.stage(f"hashing the files of {files.source}, to know its version")
    refiner: dict[str, Fact] = {
        "prompt_sha256": language_model.prompt_digest(),
        "decoding": "greedy",
        "max_new_tokens": max_new_tokens,
        "precision": precision,
        "longest_side": LONGEST_SIDE,
        "min_pixels": MIN_PIXELS,
        "max_pixels": MAX_PIXELS,
    }
    answers = _open(run.output, Origin(files.source, files.revision(), refiner))
    jobs = [
        _Job(path, expression, text)
        for path, digest in pictures.items()
        for expression, text in told.items()
        if answers.get(digest, text) is None
    ]
    if len(answers) + len(jobs) > MAX_ENTRIES:
        raise InputError(
            f"{run.output} would have {len(answers) + len(jobs)} answers, expected at most "
            f"{MAX_ENTRIES}: use several files"
        )
    if jobs:
        if files.commit:
            run.progress.stage(f"fetching the language model of {files.source}")
            find_language_model(model, revision=files.commit, offline=offline)
        run.progress.stage(f"loading the language model of {files.source}")
        language_model.load(precision, provider)
        run.progress.stage(f"asking it on {language_model.device} in {precision}")
        run.ask(language_model, jobs, answers, max_new_tokens)
    kept = len(pictures) * len(told) - len(jobs)
    return RefineReport(
        run.output, run.answered, kept, tuple(run.failures), language_model.device, precision
    )


class _Run:
    """What one call has done so far."""

    def __init__(self, output: Path, progress: RefineProgress) -> None:
        self.output = output
        self.progress = progress
        self.failures: list[str] = []
        self.answered = 0

    def fail(self, text: str) -> None:
        """Leave something out, and say so."""
        self.failures.append(text)
        self.progress.failed(text)

    def digests(self, images: Sequence[Path]) -> dict[Path, str]:
        """Name the pictures by their pixels, before minutes are spent on loading a model.

        Raises:
            InputError: Not one of them can be read.
        """
        found = {}
        for image in dict.fromkeys(images):
            try:
                found[image] = picture_digest(load_image(image))
            except InputError as error:
                if len(images) == 1:
                    raise
                self.fail(f"{one_line(image)}: {error}")
        if not found:
            raise InputError(f"none of {len(images)} pictures can be read, expected at least one")
        return found

    def ask(
        self,
        language_model: LanguageModel,
        jobs: Sequence[_Job],
        answers: InstructionFile,
        max_new_tokens: int,
    ) -> None:
        """Ask for everything that is to do, and write the file now and then and at the end."""
        saved, unsaved = time.monotonic(), False
        try:
            for number, job in enumerate(jobs):
                self.progress.step(number, len(jobs), job.path.name)
                try:
                    entry = self._answer(language_model, job, max_new_tokens)
                except InputError as error:
                    self.fail(f"{one_line(job.path)}: {error}")
                    continue
                answers.add(entry)
                self.answered += 1
                unsaved = True
                if time.monotonic() - saved >= _SAVE_EVERY_S:
                    self._save(answers)
                    saved, unsaved = time.monotonic(), False
        finally:
            if unsaved:
                self._save(answers)

    def _answer(
        self, language_model: LanguageModel, job: _Job, max_new_tokens: int
    ) -> RefinedInstruction:
        image_hwc = load_image(job.path)
        said, ended = language_model.answer(
            job.instruction, image_hwc, max_new_tokens=max_new_tokens
        )
        what = f"the answer to '{one_line(job.instruction, limit=60)}'"
        refined = clean_expression(unquote(said), what=what)
        _refuse_control_tokens(refined, what, language_model)
        if not ended:
            self.progress.stage(
                f"{one_line(job.path)}: {what} was cut at {max_new_tokens} tokens, as "
                f"--max-new-tokens asks: {one_line(refined, limit=80)}"
            )
        return RefinedInstruction(
            picture_digest(image_hwc),
            one_line(job.path.name, limit=255),
            job.expression,
            job.instruction,
            refined,
        )

    def _save(self, answers: InstructionFile) -> None:
        write_atomically(self.output, answers.to_json().encode())


def unquote(answer: str) -> str:
    """Take off quotation marks that wrap a whole answer; others are part of it.

    `"Remove the red car."` loses them, `"A" replaces "B"` does not.
    """
    text = answer.strip()
    closing = _QUOTES.get(text[:1])
    if closing is None or len(text) < 2 or text[-1] != closing:
        return text
    inside = text[1:-1]
    # An apostrophe between letters closes nothing.
    marks = re.sub(r"(?<=\w)['\u2019](?=\w)", "", inside)
    return text if text[0] in marks or closing in marks else inside.strip()


def _instructions(expressions: Sequence[str], template: str | None) -> dict[str, str]:
    """Return what is said for each expression, as a segmenter with this template says it."""
    rendered = TEMPLATE if template is None else check_template(template)
    cleaned = [clean_expression(expression) for expression in expressions]
    if not cleaned:
        raise InputError("there are no expressions, expected at least one")
    return {expression: rendered.replace(_MARK, expression) for expression in cleaned}


def _check_options(max_new_tokens: int, precision: str | None, provider: str) -> None:
    if not 1 <= max_new_tokens <= _MOST_NEW_TOKENS:
        raise InputError(f"max_new_tokens is {max_new_tokens}, expected 1 to {_MOST_NEW_TOKENS}")
    if precision not in (None, *PRECISIONS):
        raise InputError(
            f"precision is '{one_line(precision)}', expected one of {', '.join(PRECISIONS)} "
            "(float16 is too narrow for this model)"
        )
    if provider not in PROVIDERS:
        raise InputError(
            f"provider is '{one_line(provider)}', expected one of {', '.join(PROVIDERS)}"
        )


def _check_place(output: Path) -> None:
    """Refuse now, not after minutes, a place that cannot be written.

    Raises:
        OutputError: A folder, or a folder that is missing or read-only.
    """
    if output.is_dir():
        raise OutputError(f"{output} is a folder, expected a file: add a name such as a.json")
    if not output.parent.is_dir():
        raise OutputError(f"folder {output.parent} is not there: make it, or choose another")
    if not os.access(output if output.exists() else output.parent, os.W_OK):
        raise OutputError(f"{output} cannot be written: choose another place with -o")


def _refuse_control_tokens(text: str, what: str, language_model: LanguageModel) -> None:
    if token := language_model.control_token(text):
        raise InputError(
            f"{what} contains '{one_line(token)}', a control token of this model: take it out"
        )


def _open(output: Path, origin: Origin) -> InstructionFile:
    """Return what the file holds by now, or an empty one.

    Raises:
        InputError: It is another kind of file, or of another model or other settings.
    """
    if not output.exists():
        return InstructionFile(output.name, origin)
    found = InstructionFile.open(output)
    differs = next(
        (
            f"{name} {one_line(theirs, limit=80)}, this run is by {one_line(ours, limit=80)}"
            for name, theirs, ours in _facts_of_both(found.origin, origin)
            if theirs != ours
        ),
        None,
    )
    if differs is not None:
        raise InputError(
            f"{output} has answers by {differs}: choose another file with -o, or remove it"
        )
    found.origin = origin
    return found


def _facts_of_both(found: Origin, origin: Origin) -> Iterator[tuple[str, object, object]]:
    yield "revision", found.revision, origin.revision
    for name in dict.fromkeys((*origin.refiner, *found.refiner)):
        yield name, found.refiner.get(name), origin.refiner.get(name)
