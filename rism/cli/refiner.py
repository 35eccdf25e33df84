"""`--refiner`: a function of the user's own, imported by name."""

import sys
from importlib import import_module

from rism.cli.console import UsageError
from rism.runtime.errors import one_line
from rism.runtime.prompt.refiner import Refiner


def find_refiner(name: str) -> Refiner:
    """Import `package.module:function`; modules in the current folder are found too.

    Raises:
        UsageError: not such a name, no such module or function, or importing the module fails.
    """
    module_name, colon, attribute = name.partition(":")
    if not (colon and attribute and all(part.isidentifier() for part in module_name.split("."))):
        raise UsageError(
            f"--refiner is '{one_line(name, limit=80)}', expected MODULE:FUNCTION, such as "
            "my_package.words:refine"
        )
    if "" not in sys.path:
        sys.path.append("")  # last: a file here must not replace an installed package
    try:
        found: object = import_module(module_name)
    except Exception as error:  # importing a module may run anything
        raise UsageError(
            f"--refiner {one_line(name, limit=80)}: {module_name} cannot be imported "
            f"({type(error).__name__}: {one_line(error, limit=120)}): install it, or correct it"
        ) from error
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise UsageError(
            f"--refiner {one_line(name, limit=80)}: {module_name} has no such function, expected "
            "one that takes an instruction and an image"
        )
    refiner: Refiner = found
    return refiner
