"""The commands of rism, in the order of `--help`."""

from collections.abc import Callable
from typing import Annotated

import typer

from rism.cli.commands.ablate import ablate
from rism.cli.commands.build import build
from rism.cli.commands.bundles import bundles
from rism.cli.commands.calibrate import calibrate
from rism.cli.commands.doctor import doctor
from rism.cli.commands.eval import evaluate
from rism.cli.commands.export import export
from rism.cli.commands.export_triton import export_triton
from rism.cli.commands.fit_confidence import fit_confidence
from rism.cli.commands.inspect import inspect
from rism.cli.commands.push import push
from rism.cli.commands.refine import refine
from rism.cli.commands.run import run
from rism.cli.flags import as_command

_HELP = "Segment what a text refers to in an image, with an image-editing diffusion transformer."

app = typer.Typer(
    name="rism",
    help=_HELP,
    no_args_is_help=True,
    # Rich costs more time than everything else that --help does, and breaks lines in errors.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from rism import __version__

        typer.echo(f"rism {__version__}")
        raise typer.Exit


@app.callback(help=_HELP)
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None: ...


_COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "inspect": inspect,
    "doctor": doctor,
    "export": export,
    "build": build,
    "calibrate": calibrate,
    "refine": refine,
    "bundles": bundles,
    "push": push,
    "export-triton": export_triton,
    "eval": evaluate,
    "fit-confidence": fit_confidence,
    "ablate": ablate,
}
for _name, _function in _COMMANDS.items():
    # A short help of its own is wrapped; without one typer cuts the sentence.
    app.command(_name, short_help=_function.__doc__)(as_command(_function))
