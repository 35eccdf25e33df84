"""Tests of what an import does: with modules that are imported anew, and given back."""

import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest


@pytest.fixture
def forget_modules() -> Iterator[Callable[..., None]]:
    """Forget modules whose names begin so, until the test ends; then forget what took their place.

    A package's attribute is a second reference to a module, and is given back too.
    """
    before: dict[str, ModuleType] = {}
    prefixes: list[str] = []

    def forget(*names: str) -> None:
        prefixes.extend(names)
        found = {name: each for name, each in sys.modules.items() if name.startswith(names)}
        before.update(found)
        for name in found:
            del sys.modules[name]

    yield forget
    for name in [name for name in sys.modules if name.startswith(tuple(prefixes))]:
        del sys.modules[name]
    sys.modules.update(before)
    for name, module in before.items():
        package, _, attribute = name.rpartition(".")
        parent = sys.modules.get(package)
        if parent is not None and attribute in vars(parent):
            setattr(parent, attribute, module)
