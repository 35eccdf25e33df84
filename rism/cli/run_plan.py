"""What a run of `rism run` reads and writes, by its flags; checked before the work begins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rism.cli.console import Console, UsageError
from rism.cli.dataset import DatasetWriter
from rism.cli.file_names import as_text, readable
from rism.cli.flags import flags_set
from rism.cli.inputs import InputImage, Inputs, find_inputs, sort_arguments
from rism.cli.line_file import LineFile
from rism.cli.list_files import Categories, clean_expressions, read_list, read_names
from rism.cli.outputs import Destination, check_outputs, choose_destination
from rism.runtime.errors import one_line

if TYPE_CHECKING:
    from rism.cli.commands.run import RunFlags


def plan_inputs(flags: RunFlags) -> tuple[Inputs, Categories]:
    """Return the images with their expressions, and the categories of those.

    Raises:
        UsageError: images or expressions are missing, or the flags do not go together.
        InputError: an expression or a list cannot be used.
    """
    of_datasets = flags_set(flags, ("rle", "epsilon", "names"))
    if of_datasets and flags.dataset is None:
        raise UsageError(f"{of_datasets[0]} says how a dataset is written: add --format")
    known = None if flags.names is None else read_names(flags.names)
    given, texts = sort_arguments(
        flags.arguments or (),
        flags.expressions or (),
        need_images=flags.image_list is None,
        need_expressions=flags.image_list is None and known is None,
    )
    expressions = clean_expressions(as_text(text) for text in texts)
    twice = [text for text, times in Counter(expressions).items() if times > 1]
    if twice:
        raise UsageError(f"'{one_line(twice[0], limit=60)}' is given twice: leave one out")
    expressions = expressions or ([] if known is None else list(known.indices))
    listed = [] if flags.image_list is None else read_list(flags.image_list, expressions)
    inputs = find_inputs(given, recursive=flags.recursive, expressions=expressions, listed=listed)
    if given and not expressions:
        raise UsageError(f"there is no expression for '{one_line(given[0])}'; the list has its own")
    asked = dict.fromkeys(text for image in inputs.images for text in image.expressions)
    if known is None:
        return inputs, Categories(tuple(asked), {text: at for at, text in enumerate(asked)})
    unknown = [text for text in asked if text not in known.indices]
    if unknown:
        raise UsageError(
            f"'{one_line(unknown[0], limit=60)}' is no expression of '{one_line(flags.names)}': "
            "add a line NAME: EXPRESSION"
        )
    return inputs, known


def plan_outputs(
    flags: RunFlags, inputs: Inputs, categories: Categories
) -> tuple[DatasetWriter | None, Destination]:
    """Return the dataset, and where everything else goes.

    Raises:
        UsageError: the flags do not go together.
    """
    if flags.dataset is None:
        return None, choose_destination(
            flags.output,
            save=flags.save,
            as_json=flags.as_json,
            json_lines=flags.json_lines,
            images=len(inputs.images),
            expressions=len(categories.indices),
            from_folder=inputs.from_folder,
        )
    if flags.save is not None:
        raise UsageError("--save and --format both say what is written: drop one of them")
    dataset = DatasetWriter(
        flags.dataset,
        categories,
        inputs.images,
        output=flags.output,
        rle=flags.rle,
        epsilon=flags.epsilon,
    )
    if flags.as_json and flags.json_lines:
        raise UsageError("--json and --jsonl both want stdout: drop one of them")
    return dataset, Destination(
        json_stdout=flags.as_json or flags.json_lines, json_lines=flags.json_lines
    )


def without_done(
    flags: RunFlags,
    inputs: Inputs,
    names: Mapping[str, str],
    dataset: DatasetWriter | None,
    destination: Destination,
) -> Inputs:
    """Leave out what --resume and --skip-existing find done.

    Raises:
        UsageError: there is nothing that these flags can go on with, or something that needs them.
    """
    images = inputs.images
    if dataset is not None:
        left = dataset.left(images, resume=flags.resume, skip_existing=flags.skip_existing)
    elif destination.lines_file is not None:
        left = _unwritten(flags, images, destination.lines_file)
    elif flags.resume:
        raise UsageError("--resume needs --format or -o FILE.jsonl; for images add --skip-existing")
    elif flags.skip_existing:
        if destination.to_stdout or not destination.kinds:
            raise UsageError("--skip-existing needs files that may exist: add -o DIR/")
        left = tuple(
            image
            for image in images
            if not all(map(Path.exists, destination.image_paths(image.stem, _slugs(image, names))))
        )
    else:
        left = images
    return replace(inputs, images=left, skipped=len(images) - len(left))


def _slugs(image: InputImage, names: Mapping[str, str]) -> list[str]:
    return [names[text] for text in image.expressions]


def _unwritten(flags: RunFlags, images: Sequence[InputImage], file: Path) -> tuple[InputImage, ...]:
    """Return the images with the expressions that a file of JSON Lines lacks."""
    if file.exists() and not flags.resume:
        raise UsageError(f"'{one_line(file)}' exists: add --resume, or choose another file with -o")
    if flags.skip_existing:
        raise UsageError("--skip-existing is for files of images, for FILE.jsonl use --resume")
    done = {
        (line.get("image"), line.get("expression"))
        for line in LineFile(file).read()
        if "error" not in line
    }
    found = []
    for image in images:
        label = readable(image.label)[0]
        left = tuple(text for text in image.expressions if (label, text) not in done)
        if left:
            found.append(replace(image, expressions=left))
    return tuple(found)


def prepare(
    destination: Destination,
    dataset: DatasetWriter | None,
    flags: RunFlags,
    inputs: Inputs,
    names: Mapping[str, str],
    console: Console,
) -> None:
    """Check every file of the run before anything is read or written."""
    files = destination.paths((image.stem, _slugs(image, names)) for image in inputs.images)
    files += [] if dataset is None else dataset.files(inputs.images)
    read: list[Path | int] = [*inputs.files]
    texts = (flags.instructions, flags.image_list, flags.names)
    read += [each for each in texts if each is not None]
    if any(image.path is None for image in inputs.images):
        read.append(0)
    there = check_outputs(files, read)
    check_outputs([Path("/dev/stdout")], read)  # ... >> IMAGE
    if there and destination.folder is not None:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        console.note(f"note: {one_line(there[0])}{more} of an earlier run will be replaced")
    destination.prepare(files)
    if dataset is not None:
        dataset.prepare(inputs.images)
