"""Protocol buffers' text format, as much of it as a model configuration needs."""

from collections.abc import Iterator, Sequence
from typing import TypeAlias


class Word(str):
    """A name of an enumeration, which stands without quotes."""

    __slots__ = ()


Field: TypeAlias = "int | str | Word | Sequence[int] | Message"
Message: TypeAlias = "Sequence[tuple[str, Field]]"
"""Fields in order. A repeated one stands there repeatedly, numbers in one list."""


def write(message: Message) -> str:
    """Return a message as text: a line for each field, nested ones indented."""
    return "".join(f"{line}\n" for line in _lines(message, ""))


def _lines(message: Message, indent: str) -> Iterator[str]:
    for name, value in message:
        if isinstance(value, bool):
            yield f"{indent}{name}: {str(value).lower()}"
        elif isinstance(value, int | Word):
            yield f"{indent}{name}: {value}"
        elif isinstance(value, str):
            yield f"{indent}{name}: {_quoted(value)}"
        elif value and all(isinstance(item, int) for item in value):
            yield f"{indent}{name}: [{', '.join(str(item) for item in value)}]"
        else:
            yield f"{indent}{name} {{"
            yield from _lines([item for item in value if isinstance(item, tuple)], indent + "  ")
            yield f"{indent}}}"


def _quoted(text: str) -> str:
    """Quote text, byte by byte where it is not plain ASCII."""
    plain = set(range(0x20, 0x7F)) - set(b'"\\')
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03o}" for b in text.encode()) + '"'
