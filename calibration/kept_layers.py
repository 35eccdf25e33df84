"""Names of linear layers that are not quantised, and why. Imports neither onnx_ir nor NumPy."""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from rism.runtime.errors import InputError, one_line

# Layers that are not quantised, by reason. Names are those of the model's own modules.
SENSITIVE: Mapping[str, tuple[str, ...]] = {
    "embedder": ("x_embedder", "context_embedder"),
    "text": ("connector.*",),
    "conditioning": ("vec_embed.*", "time*embed*", "guidance*embed*"),
    "modulation": ("*.norm*.linear", "*modulation*"),
    "output": ("norm_out*", "proj_out"),
    # Only the part that the capture reads is left of the last block: its errors go directly into
    # the masks, and quantising it saves no time.
    "probe": ("last.*", "last_attn.*"),
}
ASKED = "asked for"
OUTSIDE = "outside the blocks"
# Blocks of transformers, of text encoders and of vision encoders.
_IN_BLOCK = re.compile(r"(?:(?:single_)?transformer_blocks|layers|blocks)\.\d+\.")


def kept_layers(names: Iterable[str], keep: Sequence[str] = ()) -> dict[str, str]:
    """Return the reason of each layer that is not quantised.

    `keep` are more patterns of names, in which * stands for anything.

    Raises:
        InputError: a pattern fits no layer.
    """
    names = list(names)
    for pattern in keep:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(
                f"--keep '{one_line(pattern, limit=80)}' fits none of the {len(names)} layers, "
                f"expected a pattern such as '{_example(names)}'"
            )
    found = {name: keep_reason(name, keep) for name in names}
    return {name: reason for name, reason in found.items() if reason is not None}


def keep_reason(name: str, keep: Sequence[str] = ()) -> str | None:
    """Return why a layer is not quantised; None where it is. For `keep` see `kept_layers`."""
    for reason, patterns in SENSITIVE.items():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            return reason
    if _IN_BLOCK.match(name) is None:
        return OUTSIDE
    return ASKED if any(fnmatchcase(name, pattern) for pattern in keep) else None


def _example(names: Sequence[str]) -> str:
    inside = [name for name in names if _IN_BLOCK.match(name)]
    return f"*.{(inside or ['x.to_out'])[-1].rpartition('.')[2]}"
