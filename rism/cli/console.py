"""The output of a command: lines on stderr, results on stdout, a progress line, an exit code."""

import contextlib
import logging
import os
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from time import monotonic
from types import FrameType
from typing import Any

from rism.runtime.errors import OutputError, RismError, RismWarning, one_line

FAILED = 1
USAGE = 2
INTERRUPTED = 130
READER_GONE = 141  # 128 + SIGPIPE, the exit code of a program that a closed pipe ended
_BAR_CELLS = 20


class UsageError(RismError):
    """Flags or arguments that do not go together."""


class ReaderGoneError(OutputError):
    """The reader of stdout, such as `head`, has closed the pipe."""


class Stopped(KeyboardInterrupt):
    """A signal that asks the program to end; treated as Ctrl-C is, with an exit code of its own."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


class Console:
    """The messages of one command, on stderr; stdout is for results."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self._bar = sys.stderr.isatty() and not quiet
        self._drawn = False

    def note(self, text: str) -> None:
        """Print a line that -q silences."""
        if not self.quiet:
            self._line(text)

    def detail(self, text: str) -> None:
        """Print a line with -v only."""
        if self.verbose:
            self._line(text)

    def error(self, text: object) -> None:
        """Print an error in one line; with -v also its traceback."""
        if self.verbose and sys.exc_info()[0] is not None:
            self._line(traceback.format_exc().rstrip())
        self._line(f"error: {one_line(text, limit=1000)}")

    def progress(self, done: int, total: int, name: str) -> None:
        """Redraw the progress bar, on terminals only."""
        filled = _BAR_CELLS * done // max(total, 1)
        cells = "#" * filled + "." * (_BAR_CELLS - filled)
        self.status(f"[{cells}] {done}/{total} {name}")

    def status(self, text: str) -> None:
        """Replace the progress line by any text, on terminals only."""
        if self._bar:
            self.clear()
            width = shutil.get_terminal_size().columns - 1
            self._write(one_line(text)[:width])
            self._drawn = True

    def clear(self) -> None:
        """Remove the progress line before something else is written."""
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = False

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Turn what a command raises into a line and an exit code, and warnings into lines."""
        shown, logged = warnings.showwarning, logging.root.manager.disable
        warnings.showwarning = partial(self._warning, shown)
        if self.quiet:  # libraries log too, as matplotlib does where HOME cannot be written to
            logging.disable(logging.WARNING)
        try:
            with _stoppable():
                yield
            write_stdout(b"")
        except ReaderGoneError:
            raise SystemExit(READER_GONE) from None
        except UsageError as error:
            self.error(error)
            raise SystemExit(USAGE) from None
        except RismError as error:
            self.error(error)
            raise SystemExit(FAILED) from None
        except KeyboardInterrupt as error:
            self._line("interrupted")
            raise SystemExit(getattr(error, "code", INTERRUPTED)) from None
        except OSError as error:  # a name too long, a folder without permission
            self.error(error)
            raise SystemExit(FAILED) from None
        except Exception as error:  # a bug, or a broken machine: still one line
            hint = "" if self.verbose else " (-v shows where)"
            self.error(f"unexpected {type(error).__name__}: {error}{hint}")
            raise SystemExit(FAILED) from None
        finally:
            warnings.showwarning = shown
            logging.disable(logged)
            self.clear()

    def _warning(
        self,
        others: Callable[..., None],
        message: Warning | str,
        category: type[Warning],
        *place: Any,
    ) -> None:
        if issubclass(category, RismWarning):
            self.note(f"warning: {one_line(message, limit=1000)}")
        elif not self.quiet:
            others(message, category, *place)

    def _line(self, text: str) -> None:
        self.clear()
        self._write(text + "\n")

    def _write(self, text: str) -> None:
        # An error about a closed stderr could not be shown anywhere.
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
            sys.stderr.flush()


class Countdown:
    """A progress bar with the time that is left, for work that takes hours."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._first: tuple[int, float] | None = None

    def step(self, done: int, total: int, name: str) -> None:
        """Redraw it: `done` of `total` are done and `name` is next."""
        now = monotonic()
        first, start = self._first = self._first or (done, now)
        left = ""
        if done > first:
            seconds = round((now - start) / (done - first) * (total - done))
            left = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left, "
        self._console.progress(done, total, left + name)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let `kill`, `timeout` and a closed terminal end a run as Ctrl-C does."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(number)

    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # Ignored signals (nohup) stay ignored; only the main thread may set handlers.
        with contextlib.suppress(ValueError):
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_stdout(data: bytes | str) -> None:
    """Write results to stdout and flush, so that a closed pipe or a full disk is noticed here.

    Text is written in UTF-8 in any locale; bytes of names that are not UTF-8 stay as they are.

    Raises:
        ReaderGoneError: the reader has closed the pipe.
        OutputError: stdout is closed, or takes no more.
    """
    if sys.stdout is None:
        if data:
            raise OutputError("cannot write to stdout: it is closed")
        return
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(_utf_8(data) if isinstance(data, str) else data)
        sys.stdout.buffer.flush()
    except OSError as error:
        # The interpreter flushes stdout again at exit, which would fail a second time.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        kind = ReaderGoneError if isinstance(error, BrokenPipeError) else OutputError
        raise kind(f"cannot write to stdout: {error.strerror or error}") from error


def _utf_8(text: str) -> bytes:
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # file names of Windows, which have no bytes
        return text.encode(errors="backslashreplace")
