"""`rism bundles`: the bundles in this user's cache."""

import shutil
from dataclasses import dataclass
from datetime import datetime

from rism.cli.console import Console, write_stdout
from rism.cli.flags import CommandFlags, option
from rism.runtime.errors import InputError, OutputError, one_line


@dataclass(frozen=True, kw_only=True)
class BundlesFlags(CommandFlags):
    """The flags of `rism bundles`."""

    remove: str | None = option(None, metavar="NAME", help="Remove this bundle instead.")


def bundles(flags: BundlesFlags, console: Console) -> None:  # noqa: ARG001
    """List the bundles that rism keeps in this user's cache."""
    from rism.cli.kept_bundles import folder_size, kept_bundles, last_used
    from rism.runtime.bundle.hub import bundles_folder

    if flags.remove is not None:
        _remove(flags.remove)
        return
    rows = [
        f"{folder.name:<48} {folder_size(folder) / 1e9:>8.2f} GB  "
        f"{datetime.fromtimestamp(last_used(folder)):%Y-%m-%d %H:%M}  {folder}\n"
        for folder in kept_bundles()
    ]
    write_stdout("".join(rows) or f"no bundles in {bundles_folder()}\n")


def _remove(name: str) -> None:
    from rism.cli.kept_bundles import kept_bundles
    from rism.runtime.bundle.hub import bundles_folder

    folder = next((folder for folder in kept_bundles() if folder.name == name), None)
    if folder is None:
        raise InputError(
            f"no bundle '{one_line(name)}' in {bundles_folder()}: rism bundles lists them"
        )
    # Renamed first, so that an interrupted removal does not leave half a bundle.
    gone = folder.with_name(f".{folder.name}.removed")
    try:
        folder.replace(gone)
        shutil.rmtree(gone)
    except OSError as error:
        raise OutputError(f"{folder} cannot be removed: {error.strerror or error}") from None
