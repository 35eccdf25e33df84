"""The command line: `rism run`, `rism inspect`, `rism export`, `rism refine`.

- `app.py`, `export_commands.py`, `bundle_commands.py`, `eval_commands.py`: the commands and their
  flags; they import nothing heavy
- `flags.py`: flags that they share
- `run.py`: pictures in, masks out
- `refiner.py`: the function that --refiner names
- `sources.py`: which pictures IMAGE means
- `outputs.py`: where results go and what they are called
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

import sys
import warnings

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
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
