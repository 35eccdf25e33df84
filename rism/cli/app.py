"""The commands of rism, in the order of `--help`."""

from importlib import import_module

import click

from rism import __version__
from rism.cli.flags import as_command

# A command's name and its function, in the file of `commands/` that is named as the command.
_COMMANDS = {
    "run": "run",
    "map": "map_images",
    "inspect": "inspect",
    "doctor": "doctor",
    "plan": "plan",
    "export": "export",
    "build": "build",
    "calibrate": "calibrate",
    "refine": "refine",
    "bundles": "bundles",
    "push": "push",
    "export-triton": "export_triton",
    "eval": "evaluate",
    "fit-confidence": "fit_confidence",
    "ablate": "ablate",
    "serve": "serve",
}


class _Commands(click.Group):
    """Imports a command when it is asked for: `rism run` need not wait for the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"rism.cli.commands.{cmd_name.replace('-', '_')}")
        return as_command(cmd_name, getattr(module, _COMMANDS[cmd_name]))


def _print_completion(ctx: click.Context, _: click.Parameter, shell: str | None) -> None:
    if shell is not None:
        from click.shell_completion import get_completion_class

        script = get_completion_class(shell)
        assert script is not None
        click.echo(script(app, {}, "rism", "_RISM_COMPLETE").source())
        ctx.exit()


app = _Commands(
    name="rism",
    help="Segment what a text refers to in an image, with an image-editing diffusion transformer.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    params=[
        click.Option(
            ["--show-completion"],
            type=click.Choice(["bash", "zsh", "fish"]),
            expose_value=False,
            is_eager=True,
            callback=_print_completion,
            help="Print the script that completes commands and flags in a shell.",
        )
    ],
)
click.version_option(__version__, message="rism %(version)s", help="Print the version.")(app)
