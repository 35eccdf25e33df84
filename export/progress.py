"""What an export says while it runs."""

from __future__ import annotations

import sys

from tqdm import tqdm

__all__ = ["Progress", "TerminalProgress"]

_QUIET_INTERVAL_S = 15.0


class Progress:
    """Told of stages and of bytes written; this one says nothing."""

    def stage(self, text: str) -> None:
        """Begin something; `text` names it."""

    def start(self, total: int) -> None:
        """Begin to write `total` bytes of weights."""

    def advance(self, count: int) -> None:
        """`count` more bytes are written."""

    def close(self) -> None:
        """Nothing more comes, whether all went well or not."""


class TerminalProgress(Progress):
    """A bar on stderr with bytes, rate and the time that is left; stages as lines."""

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None

    def stage(self, text: str) -> None:
        """Begin something; `text` names it."""
        tqdm.write(text, file=sys.stderr)

    def start(self, total: int) -> None:
        """Begin to write `total` bytes of weights."""
        # In a log file a bar is a line now and then.
        interval = 0.2 if sys.stderr.isatty() else _QUIET_INTERVAL_S
        self._bar = tqdm(
            total=total,
            unit="B",
            unit_scale=True,
            desc="weights",
            mininterval=interval,
            maxinterval=max(10.0, interval),
            file=sys.stderr,
            dynamic_ncols=True,
        )

    def advance(self, count: int) -> None:
        """`count` more bytes are written."""
        if self._bar is not None:
            self._bar.update(count)

    def close(self) -> None:
        """Nothing more comes, whether all went well or not."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
