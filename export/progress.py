"""The progress of an export."""

import sys

from tqdm import tqdm

_QUIET_INTERVAL_S = 15.0
_FORMAT = "{desc}{bar}| {n_fmt}/{total_fmt} [{elapsed}, about {remaining} left]{postfix}"


class Progress:
    """Receives the steps of an export and the bytes that it has written; does nothing with them."""

    def start(self, steps: int, total: int) -> None:
        """Start an export of `steps` steps that write `total` bytes of weights in all."""

    def stage(self, text: str) -> None:
        """Start the next step, or the work before the first; `text` names it."""

    def advance(self, count: int) -> None:
        """Count `count` more bytes as written."""

    def close(self) -> None:
        """End the export, whether it succeeded or not."""


class TerminalProgress(Progress):
    """A progress bar on stderr: steps, the time that is left, and the bytes that are written."""

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None
        self._step = self._written = self._total = 0

    def start(self, steps: int, total: int) -> None:
        """Start an export of `steps` steps that write `total` bytes of weights in all."""
        # In a log file a bar is a line now and then.
        interval = 0.2 if sys.stderr.isatty() else _QUIET_INTERVAL_S
        self._total = total
        self._bar = tqdm(
            total=steps,
            unit="step",
            mininterval=interval,
            maxinterval=max(10.0, interval),
            file=sys.stderr,
            dynamic_ncols=True,
            bar_format=_FORMAT,
        )

    def stage(self, text: str) -> None:
        """Start the next step, or the work before the first; `text` names it."""
        if self._bar is None:
            tqdm.write(text, file=sys.stderr)
            return
        self._bar.update(min(self._step, 1))
        self._step += 1
        self._bar.set_description_str(f"{text} ")

    def advance(self, count: int) -> None:
        """Count `count` more bytes as written."""
        if self._bar is not None:
            self._written += count
            written = f"{self._written / 1e6:,.0f} of {self._total / 1e6:,.0f} MB written"
            self._bar.set_postfix_str(written, refresh=False)
            self._bar.update(0)

    def close(self) -> None:
        """End the export, whether it succeeded or not."""
        if self._bar is not None:
            if self._step == self._bar.total and sys.exc_info()[0] is None:
                self._bar.update(1)
            self._bar.close()
            self._bar = None
