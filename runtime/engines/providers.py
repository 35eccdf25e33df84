"""The names of what runs graphs.

Imports nothing heavy: the command line checks a flag against these.
"""

from rism.runtime.errors import InputError, one_line

__all__ = ["PROVIDERS", "is_tensorrt", "ort_name", "parse_provider"]

_ALIASES = {
    "cpu": "onnxruntime-cpu",
    "cuda": "onnxruntime-cuda",
    "rtx": "onnxruntime-tensorrt-rtx",
}
_NAMES = (*_ALIASES.values(), "tensorrt", "tensorrt-rtx")
PROVIDERS = ("auto", *_ALIASES, *_NAMES)


def parse_provider(text: str) -> tuple[str, ...]:
    """Read what `--provider` says.

    Args:
        text: one of `PROVIDERS`, or several joined by "+": each graph is run by the first of
            them that has it, such as "tensorrt-rtx+onnxruntime-cuda" where only the transformer
            was built.

    Returns:
        Names without aliases, or ("auto",).

    Raises:
        InputError: no such provider, one twice, or "auto" among others.
    """
    parts = text.split("+")
    names = tuple(_ALIASES.get(part, part) for part in parts)
    for part in parts:
        if part not in PROVIDERS:
            raise InputError(
                f"provider is '{one_line(part, limit=60)}', expected one of "
                f"{', '.join(PROVIDERS)}, or some joined by +"
            )
    # These run every graph, so what stands after them would run none.
    whole = ("onnxruntime-cpu", "onnxruntime-cuda")
    if len(set(names)) != len(names) or any(name in whole for name in names[:-1]):
        raise InputError(
            f"provider is '{one_line(text, limit=80)}', expected different ones joined by +, "
            f"{' or '.join(whole)} only as the last, such as tensorrt-rtx+onnxruntime-cuda"
        )
    if len(names) > 1 and "auto" in names:
        raise InputError(
            f"provider is '{one_line(text, limit=80)}', expected auto by itself, or names"
        )
    return names


def is_tensorrt(name: str) -> bool:
    """Tell whether a provider runs built engines rather than ONNX graphs."""
    return name.startswith("tensorrt")


def ort_name(name: str) -> str:
    """Return what `OrtEngine` calls one of its providers: "cpu", "cuda" or "rtx"."""
    return next(alias for alias, whole in _ALIASES.items() if whole == name)
