"""The command line.

- `app.py`: the table of commands
- `commands/`: one file a command, its flags and what it does
- `flags.py`, `dataset_flags.py`: flags that commands share, and how they become a command
- `console.py`: stderr, stdout, exit codes, the progress line
- `inputs.py`: which arguments are images, and which images a folder has
- `outputs.py`: where results go
- `file_names.py`: how result files are named
- `delivery.py`: what `rism run` writes about each image, in order
- `parallel_map.py`: work in threads with results in order
- `result_format.py`: results as text and as JSON
- `refiner.py`: the function that --refiner names
- `kept_bundles.py`: bundles in the user's cache
"""

import contextlib
import os
import sys
import warnings
from pathlib import Path

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted (143 by SIGTERM, 129 by SIGHUP),
    141 when stdout is a pipe that was closed.
    """
    _occupy_closed_streams()
    try:
        from rism.cli.app import app

        with warnings.catch_warnings():
            # Pillow's warnings about metadata help nobody who runs a command.
            warnings.filterwarnings("ignore", module="PIL")
            app(prog_name="rism")  # not "python -m rism", which no shell can complete
    except KeyboardInterrupt:
        # Commands report their own interrupts; this one came while they were imported.
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _occupy_closed_streams() -> None:
    """Open the null device in place of closed standard streams.

    Otherwise the next file that is opened gets their number, and what a library prints goes into
    it. `sys.stdout` and `sys.stdin` stay None, so that results are not lost silently.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
