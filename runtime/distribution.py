"""The name of this distribution, and how to install what its extras bring.

The name is not that of the import: `rism` on PyPI is another project.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from rism.runtime.errors import RismError

DISTRIBUTION = "rism-seg"


def install_hint(extras: str) -> str:
    """Return the command that installs this rism again with extras, such as "tensorrt,cuda"."""
    import shlex
    from pathlib import Path

    checkout = Path(__file__).parents[1]
    if (checkout / "pyproject.toml").is_file():
        return f"pip install -e {shlex.quote(f'{checkout}[{extras}]')}"
    return f"pip install {shlex.quote(_source(extras))}"


@contextmanager
def needs_extra(extra: str, command: str) -> Iterator[None]:
    """Name the extra to install when an import that `rism COMMAND` needs lacks a package.

    Raises:
        RismError: a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = error.name or "a package"
        if missing.partition(".")[0] == "rism":
            raise
        raise RismError(
            f"rism {command} needs {missing}, which is not installed: {install_hint(extra)}"
        ) from error


def _source(extras: str) -> str:
    """Name this distribution as pip does: a wheel or folder, an address, or its name."""
    import json
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.request import url2pathname

    named = f"{DISTRIBUTION}[{extras}]"
    try:
        # PEP 610: kept unless it came from an index.
        origin = json.loads(distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        origin = {}
    url = str(origin.get("url", ""))
    if url.startswith("file:"):
        return f"{url2pathname(url.removeprefix('file://'))}[{extras}]"
    if "vcs_info" in origin:
        return f"{named} @ {origin['vcs_info']['vcs']}+{url}"
    return f"{named} @ {url}" if url else named
