"""What families share where they open the parts of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from torch import nn

from rism.export.checkpoint.meta_modules import build_empty
from rism.export.checkpoint.safetensors_store import TensorStore
from rism.export.errors import CheckpointError
from rism.runtime.errors import one_line

# Layers of a Qwen language model and of a VAE whose results are added to the residual stream.
TEXT_INTO_STREAM = ("o_proj", "down_proj")
VAE_INTO_STREAM = ("conv_in", "conv1", "conv2", "conv_shortcut", "conv", "conv_out", "to_out.0")
_MOST_BLOCKS = 512


def config_failure(part: str, error: Exception) -> CheckpointError:
    """Return the error of a part whose configuration describes no model."""
    return CheckpointError(
        f"{part}: its configuration describes no model ({one_line(error, limit=160)}): "
        "download config.json again"
    )


def shapes_of(part: str, build: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a part's tensors by name.

    Raises:
        CheckpointError: Its configuration describes no model.
    """
    try:
        module = build_empty(build)
    except Exception as error:  # the libraries' own kinds for a wrong value
        raise config_failure(part, error) from None
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def check_count(part: str, key: str, value: object) -> None:
    """Refuse an absurd number of blocks before a model of them is built.

    Raises:
        CheckpointError: It is one.
    """
    if not isinstance(value, int) or not 0 <= value <= _MOST_BLOCKS:
        raise CheckpointError(
            f"{part}: {key} is {one_line(value, limit=40)}, expected a number of blocks up to "
            f"{_MOST_BLOCKS}: mend its config.json"
        )


def keep_arguments(kind: type[nn.Module], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return those entries of a configuration that a class takes."""
    known = signature(kind.__init__).parameters
    return {key: value for key, value in config.items() if key in known}


def find_file(folder: Path, names: tuple[str, ...], message: str) -> Path:
    """Return the first of some files that is in a folder.

    Raises:
        CheckpointError: There is none; it has the message.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(message)


def pick_blocks(
    double: tuple[int, ...], single: tuple[int, ...]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Choose one double-stream block, and one single-stream block, each before the last one."""
    last = single[-1]
    kept: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    if double:
        kept.append(((double[0],), (last,)))
    if len(single) > 1:
        kept.append(((), (single[0], last)))
    return kept or [((), (last,))]


def renumber_blocks(
    store: TensorStore, names: Mapping[str, object], blocks: Mapping[str, tuple[int, ...]]
) -> TensorStore:
    """Give a few blocks' tensors the numbers they have in a model of these blocks alone.

    Args:
        store: of the whole model.
        names: of the model of a few blocks; those that the store lacks are left out.
        blocks: numbers in the store of each group of blocks, by the beginning of names.
    """
    found = {}
    for name in names:
        old = name
        for group, numbers in blocks.items():
            if name.startswith(f"{group}."):
                index, _, rest = name.removeprefix(f"{group}.").partition(".")
                old = f"{group}.{numbers[int(index)]}.{rest}"
        if old in store:
            found[name] = old
    return store.renamed(found)
