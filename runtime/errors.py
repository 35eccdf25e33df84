"""The kinds of errors that rism raises, and its warning.

Every message is one line: what was wrong, what was expected, how to mend it. Only the command
line turns errors into exit codes.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


class RismError(Exception):
    """Base of every error that rism raises on purpose."""


class InputError(RismError):
    """An image, an expression or an argument that cannot be used."""


class BundleError(RismError):
    """A bundle that is missing, damaged, dangerous, or newer than this reader."""


class ProviderError(RismError):
    """An engine or a device that cannot run here."""


class OutputError(RismError):
    """A place that results cannot be written to."""


class RismWarning(UserWarning):
    """The results are right, but something is slower than it could be; the message says why."""


def one_line(text: object, *, limit: int = 300) -> str:
    """Fold foreign text (another library's message, a name) into one printable line."""
    folded = " ".join(str(text).split())
    printable = "".join(c if c.isprintable() else "?" for c in folded)
    return printable if len(printable) <= limit else printable[: limit - 3] + "..."


def listed(names: Iterable[str]) -> str:
    """Join names for a message; "none" where there are none."""
    return one_line(", ".join(names) or "none", limit=120)


@contextmanager
def failures_as(make: Callable[[str], RismError]) -> Iterator[None]:
    """Turn whatever a library's parser raises into the error that `make` makes of its message.

    A panic of a library in Rust derives from `BaseException`, as an interrupt does: only its
    class name tells them apart.

    Raises:
        RismError: what `make` made; one of ours passes as it is.
    """
    try:
        yield
    except RismError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise make(one_line(error, limit=120)) from None
