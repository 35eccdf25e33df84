"""The options of a segmentation, with the defaults that docs/quality.md measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias, TypedDict, Unpack, cast

import numpy as np
import numpy.typing as npt

from rism.runtime.bundle.manifest import PROTOTYPES, Method
from rism.runtime.errors import InputError, one_line
from rism.runtime.names import UPSAMPLING_METHODS

PromptWeights: TypeAlias = str | npt.NDArray[np.floating[Any]] | Sequence[float] | None


class SegmentOptions(TypedDict, total=False):
    """Keywords of `Segmenter.segment`; one that is left out, or None, has its default.

    Keys:
        tau: region threshold on the refined map, 0 to below 1; default: the bundle's.
        prompt_weights: w of a_l = A w, the weight of each prompt token: "all" for the paper's
            ones, "valid" for all but padding, "instruction" for the instruction without the
            model's chat prefix and suffix, "expression" for the tokens of the expression,
            "content" for these without stop words, "head" for the head noun in full and the rest
            of the expression at half weight, or an array (N_p,) or (B, N_p), where N_p is that of
            the longest prompt; default: "all".
        magnets: words to append to the instruction, as one text or one by one, to absorb stray
            attention; their tokens have weight 0; default: none.
        sinks: detect attention-sink tokens (`find_sinks`) and run the transformer again with
            their weight set to 0; needs a bundle exported with --token-attention; default: False.
        prototype: "equation" or "cosine"; default: the bundle's.
        upsample: "guided" draws contours along the edges of the image (`guided_upsample`),
            "bilinear" is the paper's; default: "guided".
        spatial_prior: weight the refined map by words such as "left" and "top" before tau
            (`spatial_prior`), which capture "scores" cannot do, since its graph contains the
            threshold; default: False.
        instances: of several separate regions, keep the one that words of place and size mean
            (`one_instance`); default: False.
        confidence: return an empty mask below this confidence, 0 to 1; default: the bundle's
            threshold.
        always: return a mask even where the confidence says that the object is absent, or where
            the expression or image is out of a demonstrator's scope (`Segmentation.outside`);
            default: False.
        paper: use the published method only: upsample "bilinear" and no rejection, except for
            options given beside it; default: False.
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
    """Checked options, each with a value; see `SegmentOptions`."""

    tau: float
    prompt_weights: PromptWeights
    magnets: str
    sinks: bool
    prototype: str
    upsample: str
    spatial_prior: bool
    instances: bool
    confidence: float | None
    always: bool


def drop_unset(**options: Unpack[SegmentOptions]) -> SegmentOptions:
    """Leave out the options that are None."""
    return cast(SegmentOptions, {key: value for key, value in options.items() if value is not None})


def resolve_options(options: SegmentOptions, method: Method, capture: str) -> ResolvedOptions:
    """Check a caller's options and fill in defaults, the bundle's in `method`.

    Raises:
        InputError: an unknown option, a value that is not allowed, or one that the capture mode
            does not support.
    """
    own: Mapping[str, Any] = drop_unset(**options)
    for name in own:
        if name not in SegmentOptions.__annotations__:
            raise InputError(
                f"there is no option '{one_line(name, limit=40)}', expected some of "
                f"{', '.join(SegmentOptions.__annotations__)}"
            )
    in_graph = capture == "scores"
    paper = _flag(own, "paper", default=False)
    confidence = _confidence(own, method)
    resolved = ResolvedOptions(
        tau=_number(own, "tau", method.tau),
        prompt_weights=own.get("prompt_weights"),
        magnets=_joined(own.get("magnets", "")),
        sinks=_flag(own, "sinks", default=False),
        prototype=_one_of(own, "prototype", PROTOTYPES, method.prototype),
        upsample=_one_of(own, "upsample", UPSAMPLING_METHODS, "bilinear" if paper else "guided"),
        spatial_prior=_flag(own, "spatial_prior", default=False),
        instances=_flag(own, "instances", default=False),
        confidence=confidence,
        always=_flag(own, "always", default=paper and confidence is None),
    )
    if not 0.0 <= resolved.tau < 1.0:
        raise InputError(
            f"tau is {one_line(own['tau'])}, expected a number from 0 to below 1, such as 0.8"
        )
    if in_graph and resolved.prototype != method.prototype:
        raise InputError(
            f"prototype '{resolved.prototype}' cannot be used with capture 'scores', whose graph "
            f"contains '{method.prototype}': use capture 'vectors'"
        )
    if in_graph and resolved.spatial_prior:
        raise InputError(
            "the spatial prior cannot be used with capture 'scores', whose graph contains the "
            "threshold: use capture 'vectors'"
        )
    if resolved.always and confidence is not None:
        raise InputError("always and confidence exclude each other: drop one of them")
    return resolved


def _number(own: Mapping[str, Any], name: str, default: float) -> float:
    """Return a number as a float, and NaN for anything else."""
    value = own.get(name, default)
    # NumPy's numbers are Real, too; so is a bool, which is a mistake here.
    if isinstance(value, bool) or not isinstance(value, Real):
        return np.nan
    return float(value)


def _confidence(own: Mapping[str, Any], method: Method) -> float | None:
    if "confidence" not in own:
        return None
    least = _number(own, "confidence", np.nan)
    if not 0.0 <= least <= 1.0:
        raise InputError(
            f"confidence is {one_line(own['confidence'])}, expected a number from 0 to 1, such as "
            "0.5"
        )
    if method.confidence is None:
        raise InputError(
            "the bundle's confidence was never fitted, so none can be required: leave it out, or "
            "see rism fit-confidence --help"
        )
    return least


def _joined(magnets: object) -> str:
    """Join magnets to one text; its words are checked together with the instruction."""
    words = [magnets] if isinstance(magnets, str) else magnets
    if not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
        raise InputError(
            f"magnets are '{one_line(magnets, limit=60)}', expected words such as 'a with to and'"
        )
    return " ".join(words).strip()


def _one_of(own: Mapping[str, Any], name: str, allowed: tuple[str, ...], default: str) -> str:
    value = own.get(name, default)
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{name} is '{one_line(value)}', expected {' or '.join(allowed)}")
    return value


def _flag(own: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = own.get(name, default)
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} is '{one_line(value, limit=40)}', expected True or False")
    return bool(value)
