"""A checkpoint's own settings, from its file `rism.json`, over the published defaults."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from rism.export.checkpoint.json_files import read_json
from rism.export.checkpoint.locate import Checkpoint
from rism.export.errors import CheckpointError
from rism.export.family import FamilySpec
from rism.export.precision import PRECISIONS
from rism.runtime.bundle.confidence_rule import ConfidenceRule
from rism.runtime.bundle.scope import Scope, is_noun
from rism.runtime.errors import InputError, one_line


@dataclass(frozen=True)
class Setting:
    """One key of rism.json: its default, and which values it may have."""

    default: Any
    fits: Callable[[Any], bool]
    expected: str


def _is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def whole(default: int | None, low: int, high: int) -> Setting:
    """A whole number in [low, high]."""
    return Setting(
        default, lambda v: _is_whole(v, low, high), f"a whole number from {low} to {high}"
    )


def nullable(setting: Setting) -> Setting:
    """The same, or null."""
    return Setting(
        setting.default, lambda v: v is None or setting.fits(v), f"{setting.expected}, or null"
    )


def flag(default: bool) -> Setting:
    """True or false."""
    return Setting(default, lambda v: isinstance(v, bool), "true or false")


def _line(default: str | None) -> Setting:
    return Setting(default, lambda v: isinstance(v, str) and v.isprintable(), "printable text")


def _is_rule(value: object) -> bool:
    keys = {field.name for field in fields(ConfidenceRule)}
    return (
        isinstance(value, dict)
        and set(value) == keys
        and all(isinstance(v, float) and math.isfinite(v) for v in value.values())
        and 0 <= value["threshold"] <= 1
    )


def _is_scope(value: object) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {field.name for field in fields(Scope)}
        and isinstance(value["nouns"], list)
        and bool(value["nouns"])
        and all(is_noun(v) for v in value["nouns"])
    )


COMMON: dict[str, Setting] = {
    "name": _line(None),
    "licence": _line("see the model card"),
    "demonstrator": flag(False),
    "size_level": whole(1024, 8, 8192),
    "feature_block": nullable(whole(None, 0, 1023)),
    "tau": Setting(
        0.8, lambda v: isinstance(v, float) and 0 <= v < 1, "a number from 0 to below 1"
    ),
    "confidence": Setting(
        None,
        lambda v: v is None or _is_rule(v),
        "an object of the numbers separability, concentration, agreement, bias and threshold",
    ),
    "scope": Setting(
        None, lambda v: v is None or _is_scope(v), "an object of nouns, words in lower case"
    ),
    # As published; float32 for a demonstrator, which runs on CPUs.
    "precision": Setting(
        None, lambda v: v is None or v in PRECISIONS, f"one of {', '.join(PRECISIONS)}"
    ),
}


def feature_block(settings: Mapping[str, Any], *, depth: float, blocks: int) -> int:
    """Return l' as the settings have it, or else the paper's block in proportion.

    Args:
        settings: of `read_settings`.
        depth: the paper's block over the number of its model's blocks.
        blocks: of this model.

    Raises:
        CheckpointError: There is no such block.
    """
    said = settings["feature_block"]
    block = math.floor(depth * blocks + 0.5) if said is None else int(said)
    if block >= blocks:
        raise CheckpointError(
            f"feature_block is {block}, the transformer has {blocks} blocks: "
            "expected a smaller number in rism.json"
        )
    return block


def read_settings(
    checkpoint: Checkpoint, family: FamilySpec, known: Mapping[str, Setting]
) -> dict[str, Any]:
    """Return the published defaults, updated with the checkpoint's rism.json and the options.

    Args:
        checkpoint: where rism.json may lie.
        family: that the checkpoint is of.
        known: every key.

    Raises:
        CheckpointError: Its rism.json has unknown keys or values out of range.
        InputError: An option that this family does not have was given.
    """
    path = checkpoint.folder / "rism.json"
    own = read_json(path) if path.exists() else {}
    unknown = sorted(set(own) - set(known))
    if unknown:
        raise CheckpointError(
            f"{path} has unknown keys {unknown}, expected some of {sorted(known)}: remove them"
        )
    for key, value in own.items():
        if not known[key].fits(value):
            raise CheckpointError(
                f"{path}: {key} is {one_line(value, limit=60)}, expected {known[key].expected}: "
                "mend it"
            )
    if unknown := sorted(set(checkpoint.settings) - set(known)):
        raise InputError(
            f"{checkpoint.name} is of a family of models that has no option '{unknown[0]}': leave "
            "it out"
        )
    found = {key: setting.default for key, setting in known.items()}
    found["name"] = checkpoint.name
    for model in family.published:
        if checkpoint.source == f"hub:{model.repository}":
            found["licence"] = model.licence
    return found | own | dict(checkpoint.settings)
