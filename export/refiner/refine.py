"""Rewriting instructions with a model family's own refiner, into a file (docs/refine.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rism.export.refiner.answer_file import RefinedInstructionFile, check_output_file, unquote
from rism.export.refiner.qwen_files import LanguageFiles, find_language_model
from rism.export.refiner.qwen_model import LONGEST_SIDE, MAX_PIXELS, MIN_PIXELS, LanguageModel
from rism.export.refiner.settings import ImageExpressions, RefineProgress, RefineSettings
from rism.runtime.errors import InputError, one_line
from rism.runtime.prompt.encoder import clean_expression
from rism.runtime.prompt.instruction_file import (
    MAX_ENTRIES,
    Origin,
    RefinedInstruction,
    image_digest,
)


@dataclass(frozen=True)
class RefineReport:
    """What a run did.

    Attributes:
        output: the file.
        answered: instructions that were reworded now.
        kept: instructions that were in the file already.
        failures: one line for each image or instruction that was left out.
        left_out: names of images with the expressions that have no answer for them.
        device: where the model ran; empty where nothing was left to ask.
        precision: what it computes in.
    """

    output: Path
    answered: int
    kept: int
    failures: tuple[str, ...]
    left_out: frozenset[tuple[str, str]]
    device: str
    precision: str


def refine_images(
    model: str,
    images: Sequence[ImageExpressions],
    output: str | Path,
    settings: RefineSettings,
    *,
    strict: bool = False,
    progress: RefineProgress | None = None,
) -> RefineReport:
    """Reword the instructions of each image's own expressions, and write them to a file.

    What the file holds already, by the same model and settings, is not asked again; it is
    written now and then while answers come, and when the run is interrupted.

    Args:
        model: "step1x", "step1x-v1.1", "step1x-v1.2", a folder or a hub id (see
            `find_language_model`).
        images: the images with their expressions.
        output: the JSON file to make, or to add to.
        settings: how the model is asked.
        strict: raise for an expression that cannot be used; otherwise it is left out.
        progress: told of stages, steps and failures.

    Raises:
        InputError: No image can be read, an expression cannot be used (with `strict`), or the
            file has answers of another model or other settings.
        OutputError: The file cannot be written.
        CheckpointError: The model cannot be found or read.
        UnsupportedModelError: Its family has no refiner.
        ExportError: Not enough memory.
    """
    check_output_file(Path(output))
    if strict:
        for expression in (each for image in images for each in image.expressions):
            settings.instruct(expression)
    run = _Run(settings, progress or RefineProgress())
    digests = run.digests(images)
    find = partial(find_language_model, model, offline=settings.offline)
    files = find(revision=settings.revision, weights=False)
    language_model = LanguageModel(files)
    wanted = run.questions(digests, language_model, strict=strict)
    precision = settings.precision or files.default_precision()
    if not files.commit:
        run.progress.stage(f"hashing the files of {files.source}, to know its version")
    file = RefinedInstructionFile(Path(output), _origin(files, language_model, settings, precision))
    jobs = [one for one in wanted if file.answers.get(one.digest, one.instruction) is None]
    if len(file.answers) + len(jobs) > MAX_ENTRIES:
        raise InputError(
            f"{output} would have {len(file.answers) + len(jobs)} answers, expected at most "
            f"{MAX_ENTRIES}: use several files"
        )
    if jobs:
        if files.commit:
            run.progress.stage(f"fetching the language model of {files.source}")
            find(revision=files.commit)
        run.progress.stage(f"loading the language model of {files.source}")
        language_model.load(precision, settings.provider)
        run.progress.stage(f"asking it on {language_model.device} in {precision}")
        run.ask(language_model, jobs, file)
    return RefineReport(
        file.path,
        run.answered,
        len(wanted) - len(jobs),
        tuple(run.failures),
        frozenset(run.left_out),
        language_model.device,
        precision,
    )


def _origin(
    files: LanguageFiles, language_model: LanguageModel, settings: RefineSettings, precision: str
) -> Origin:
    return Origin(
        files.source,
        files.revision(),
        {
            "prompt_sha256": language_model.prompt_digest(),
            "decoding": "greedy",
            "max_new_tokens": settings.max_new_tokens,
            "precision": precision,
            "longest_side": LONGEST_SIDE,
            "min_pixels": MIN_PIXELS,
            "max_pixels": MAX_PIXELS,
        },
    )


@dataclass(frozen=True)
class _Question:
    """One instruction for one image; several expressions and names can come to the same."""

    image: ImageExpressions
    digest: str
    expression: str
    instruction: str
    asked_by: list[tuple[str, str]] = field(default_factory=list)


class _Run:
    """What one call has done so far."""

    def __init__(self, settings: RefineSettings, progress: RefineProgress) -> None:
        self.settings = settings
        self.progress = progress
        self.failures: list[str] = []
        self.left_out: list[tuple[str, str]] = []
        self.answered = 0

    def fail(self, name: str, error: InputError, asked_by: Sequence[tuple[str, str]]) -> None:
        """Leave something out, and say so."""
        self.failures.append(f"{one_line(name)}: {error}")
        self.left_out += asked_by
        self.progress.failed(self.failures[-1])

    def digests(self, images: Sequence[ImageExpressions]) -> list[tuple[ImageExpressions, str]]:
        """Name the images by their pixels, before minutes are spent on loading a model.

        Raises:
            InputError: Not one of them can be read.
        """
        found = []
        for number, image in enumerate(images):
            self.progress.reading(number, len(images), Path(image.name).name)
            try:
                found.append((image, image_digest(image.read())))
            except InputError as error:
                if len(images) == 1:
                    raise
                self.fail(image.name, error, [(image.name, e) for e in image.expressions])
        if not found:
            raise InputError(f"none of {len(images)} images can be read, expected at least one")
        return found

    def questions(
        self,
        images: Sequence[tuple[ImageExpressions, str]],
        language_model: LanguageModel,
        *,
        strict: bool,
    ) -> list[_Question]:
        """List what is to be asked, each once.

        Raises:
            InputError: With `strict`, an expression that cannot be used.
        """
        found: dict[tuple[str, str], _Question] = {}
        for image, digest in images:
            for expression in image.expressions:
                asked_by = (image.name, expression)
                try:
                    text = self.settings.instruct(expression)
                    _refuse_control_tokens(text, "the instruction", language_model)
                except InputError as error:
                    if strict:
                        raise
                    self.fail(image.name, error, [asked_by])
                    continue
                one = _Question(image, digest, clean_expression(expression), text)
                found.setdefault((digest, text), one).asked_by.append(asked_by)
        return list(found.values())

    def ask(
        self,
        language_model: LanguageModel,
        questions: Sequence[_Question],
        file: RefinedInstructionFile,
    ) -> None:
        """Ask for everything that is to do, and write the file now and then and at the end."""
        shown: tuple[ImageExpressions, npt.NDArray[np.uint8]] | None = None
        try:
            for number, one in enumerate(questions):
                self.progress.step(number, len(questions), Path(one.image.name).name)
                try:
                    if shown is None or shown[0] is not one.image:
                        shown = one.image, one.image.read()
                    entry = self._answer(language_model, one, shown[1])
                except InputError as error:
                    self.fail(one.image.name, error, one.asked_by)
                    continue
                file.add(entry)
                self.answered += 1
        finally:
            file.save()

    def _answer(
        self, language_model: LanguageModel, one: _Question, image_hwc: npt.NDArray[np.uint8]
    ) -> RefinedInstruction:
        limit = self.settings.max_new_tokens
        said, ended = language_model.answer(one.instruction, image_hwc, max_new_tokens=limit)
        what = f"the answer to '{one_line(one.instruction, limit=60)}'"
        refined = clean_expression(unquote(said), what=what)
        _refuse_control_tokens(refined, what, language_model)
        if not ended:
            self.progress.stage(
                f"{one_line(one.image.name)}: {what} was cut at {limit} tokens, as "
                f"--max-new-tokens asks: {one_line(refined, limit=80)}"
            )
        return RefinedInstruction(
            image_digest(image_hwc),
            one_line(Path(one.image.name).name, limit=255),
            one.expression,
            one.instruction,
            refined,
        )


def _refuse_control_tokens(text: str, what: str, language_model: LanguageModel) -> None:
    if token := language_model.control_token(text):
        raise InputError(
            f"{what} contains '{one_line(token)}', a control token of this model: take it out"
        )
