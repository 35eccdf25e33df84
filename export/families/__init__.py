"""The model families that can be exported, one package each.

A new family is a package with a `FamilySpec`, and its line in `FAMILIES`. What it declares must be
readable without PyTorch: heavy modules are imported by its functions.
"""

from rism.export.families import flux2, step1x
from rism.export.family import FamilySpec

__all__ = ["FAMILIES"]

FAMILIES: tuple[FamilySpec, ...] = (flux2.FAMILY, *step1x.FAMILIES.values())
