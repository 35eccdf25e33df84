"""What a caller can choose for a segmentation, with the defaults that docs/quality.md judged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TypedDict, Unpack, cast

import numpy as np

from rism.runtime.bundle.manifest import PROTOTYPES, Method
from rism.runtime.errors import InputError, one_line
from rism.runtime.prompt.token_weights import PromptWeights

__all__ = ["UPSAMPLES", "ResolvedOptions", "SegmentOptions", "drop_unset", "resolve_options"]

UPSAMPLES = ("guided", "bilinear")


class SegmentOptions(TypedDict, total=False):
    """Keywords of `Segmenter.segment`; what is left out, or None, is the default.

    Keys:
        tau: region threshold on the refined map, 0 to below 1; the bundle's.
        prompt_weights: w of a_l = A w, which tokens count: "all" for the paper's ones, "valid"
            for no padding, "instruction" for the instruction without the model's chat prefix and
            suffix, "expression" for the expression's own tokens, "content" for these without
            stop words, "head" for the head noun in full and the rest of the expression at half
            weight, or an array (N_p,) or (B, N_p), N_p that of the longest prompt; "all".
        magnets: words to put after the instruction, as a text or one by one, so that attention
            which belongs nowhere goes there; they are weighed out (`prompt_token_weights`); none.
        sinks: find prompt tokens that all of the picture looks at (`find_sinks`) and weigh them
            out in a second pass of the transformer; needs a bundle exported with
            --token-attention; False.
        prototype: "equation" or "cosine"; the bundle's.
        upsample: "guided" draws the contour along the picture's own edges (`guided_upsample`),
            "bilinear" is the paper's; "guided".
        spatial_prior: weigh the refined map by words such as "left" and "top" before tau
            (`spatial_prior`); True, but for capture "scores", whose graph holds the threshold.
        instances: of several parts, keep the one that words of place and size mean
            (`one_instance`); True.
        confidence: below this, 0 to 1, nothing in the picture fits; the bundle's threshold.
        always: answer with a mask even where the confidence says that nothing in the picture
            fits, or where a demonstrator cannot know (`Segmentation.outside`); False.
        paper: the published method to the letter: all of the above as it has them, but for what
            is chosen besides; False.
    """

    tau: float | None
    prompt_weights: PromptWeights
    magnets: str | Sequence[str] | None
    sinks: bool | None
    prototype: str | None
    upsample: str | None
    spatial_prior: bool | None
    instances: bool | None
    confidence: float | None
    always: bool | None
    paper: bool | None


@dataclass(frozen=True)
class ResolvedOptions:
    """SegmentOptions, complete and checked; see `SegmentOptions`."""

    tau: float
    prototype: str
    upsample: str
    spatial_prior: bool
    instances: bool
    confidence: float | None
    always: bool
    magnets: str
    sinks: bool


def drop_unset(**choices: Unpack[SegmentOptions]) -> SegmentOptions:
    """Keep what was chosen, leave out what is None."""
    return cast(SegmentOptions, {key: value for key, value in choices.items() if value is not None})


def resolve_options(choices: SegmentOptions, method: Method, capture: str) -> ResolvedOptions:
    """Complete what was chosen with defaults.

    Args:
        choices: what was asked for.
        method: the bundle's own defaults.
        capture: the capture mode.

    Raises:
        InputError: a name or a value that is none of those allowed, or that the capture cannot
            do.
    """
    own: dict[str, object] = {key: each for key, each in choices.items() if each is not None}
    for name in own:
        if name not in SegmentOptions.__annotations__:
            raise InputError(
                f"there is no option '{one_line(name, limit=40)}', expected some of "
                f"{', '.join(SegmentOptions.__annotations__)}"
            )
    paper = _flag(own, "paper", default=False)
    tau = _number(own.get("tau", method.tau))
    if not 0.0 <= tau < 1.0:
        raise InputError(
            f"tau is {one_line(own['tau'])}, expected a number from 0 to below 1, such as 0.8"
        )
    in_graph = capture == "scores"
    prototype = _one_of(own.get("prototype", method.prototype), PROTOTYPES, "prototype")
    if in_graph and prototype != method.prototype:
        raise InputError(
            f"prototype '{prototype}' cannot be asked of capture 'scores', whose graph holds "
            f"'{method.prototype}': use capture 'vectors'"
        )
    spatial_prior = _flag(own, "spatial_prior", default=not paper and not in_graph)
    if in_graph and spatial_prior:
        raise InputError(
            "the spatial prior cannot be asked of capture 'scores', whose graph holds the "
            "threshold: use capture 'vectors'"
        )
    least = _least(own, method)
    always = _flag(own, "always", default=paper and least is None)
    if always and least is not None:
        raise InputError("always and confidence exclude each other: drop one of them")
    default = "bilinear" if paper else "guided"
    return ResolvedOptions(
        tau=tau,
        prototype=prototype,
        upsample=_one_of(own.get("upsample", default), UPSAMPLES, "upsample"),
        spatial_prior=spatial_prior,
        instances=_flag(own, "instances", default=not paper),
        confidence=least,
        always=always,
        magnets=_joined(own.get("magnets", "")),
        sinks=_flag(own, "sinks", default=False),
    )


def _number(value: object) -> float:
    """Return a number as a float, anything else as NaN."""
    # NumPy's numbers are real ones, too; a bool is one by mistake.
    if isinstance(value, bool) or not isinstance(value, Real):
        return float("nan")
    return float(value)


def _least(own: Mapping[str, object], method: Method) -> float | None:
    """Return the confidence that is expected of an answer, where it was chosen."""
    if "confidence" not in own:
        return None
    least = _number(own["confidence"])
    if not 0.0 <= least <= 1.0:
        raise InputError(
            f"confidence is {one_line(own['confidence'])}, expected a number from 0 to 1, such as "
            "0.5"
        )
    if method.confidence is None:
        raise InputError(
            "the bundle's confidence was never fitted, so none can be asked for: leave it out, or "
            "see rism fit-confidence --help"
        )
    return least


def _joined(magnets: object) -> str:
    """Put magnets into one text; what is in it is checked with the instruction."""
    words = [magnets] if isinstance(magnets, str) else magnets
    if not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
        raise InputError(
            f"magnets are '{one_line(magnets, limit=60)}', expected words such as 'a with to and'"
        )
    return " ".join(words).strip()


def _one_of(value: object, allowed: tuple[str, ...], name: str) -> str:
    for each in allowed:
        if isinstance(value, str) and value == each:
            return each
    raise InputError(f"{name} is '{one_line(value)}', expected {' or '.join(allowed)}")


def _flag(own: Mapping[str, object], name: str, *, default: bool) -> bool:
    value = own.get(name, default)
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} is '{one_line(value, limit=40)}', expected True or False")
    return bool(value)
