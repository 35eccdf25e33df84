"""What this machine has for running bundles, for `rism doctor`."""

import platform
import sys
from dataclasses import dataclass
from importlib import metadata

from rism.runtime.distribution import DISTRIBUTION
from rism.runtime.engines import nvidia_driver
from rism.runtime.engines.cpu_threads import cpu_count
from rism.runtime.engines.nvidia_driver import Driver
from rism.runtime.engines.providers import PROVIDERS, Provider
from rism.runtime.errors import ProviderError, RismError


@dataclass(frozen=True)
class ProviderProbe:
    """Whether a provider can start here: with what, or why not."""

    provider: str
    ready: bool
    text: str


def packages() -> dict[str, str]:
    """Return versions of the installed packages that running a bundle may use."""
    providers = (each.package for each in reversed(PROVIDERS.values()))
    shared = (DISTRIBUTION, "numpy", "tokenizers", "pillow", "cupy-cuda13x", "cupy-cuda12x")
    found = {}
    for name in (*shared, *providers):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def python_line() -> str:
    """Name the interpreter and the platform."""
    return (
        f"{platform.python_implementation()} {platform.python_version()} at {sys.prefix} on "
        f"{platform.system()} {platform.release()} {platform.machine()}, {cpu_count()} CPUs"
    )


def the_driver() -> Driver | str:
    """Return NVIDIA's driver, or why there is none."""
    try:
        return nvidia_driver.find_driver()
    except ProviderError as error:
        return str(error)


def probe(provider: Provider, *, device: int = 0) -> ProviderProbe:
    """Try everything that a provider needs, short of a graph."""
    try:
        return ProviderProbe(provider.name, True, provider.probe(device))
    except RismError as error:
        return ProviderProbe(provider.name, False, str(error))
