"""The command line: `rism run`, `rism inspect`, `rism export`, `rism refine`.

- `app.py`, `export_commands.py`, `bundle_commands.py`, `eval_commands.py`: the commands and their
  flags; they import nothing heavy
- `flags.py`: flags that they share
- `run.py`: pictures in, masks out
- `refiner.py`: the function that --refiner names
- `sources.py`: which arguments are images, and which images a folder has
- `outputs.py`: where results go
- `names.py`: what they are called
- `report.py`: results as lines and as JSON
- `inspect.py`: a bundle, printed
- `doctor.py`: this machine and a bundle, examined
- `export.py`: the door to rism.export
- `refine.py`: the door to its refiner
- `build.py`: the door to rism.export.engines
- `calibrate.py`: the door to rism.calibration
- `eval.py`: the door to rism.evaluation
- `export_triton.py`: the door to rism.export.triton
- `console.py`: stderr, exit codes, the progress line
"""

import contextlib
import os
import sys
import warnings
from pathlib import Path

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit.

    0 done, 1 failed, 2 wrong usage, 130 interrupted (143 and 129 by SIGTERM and SIGHUP), 141 when
    the reader of stdout is gone.
    """
    _occupy_closed_streams()
    try:
        from rism.runtime.cli.app import app

        with warnings.catch_warnings():
            # What Pillow says of odd metadata helps nobody who runs a command.
            warnings.filterwarnings("ignore", module="PIL")
            app(prog_name="rism")  # not "python -m rism", which no shell can complete
    except KeyboardInterrupt:
        # Commands report their own interrupts; this one came while they were imported.
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _occupy_closed_streams() -> None:
    """Open the null device in the place of standard streams that are closed.

    The next file to be opened would have their number, and what a library prints would go into it.
    `sys.stdout` and `sys.stdin` stay None, so that results are not lost in silence.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
