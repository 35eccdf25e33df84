"""The model families that can be exported, one module each."""

from __future__ import annotations

from rism.export.families.flux2.klein import FLUX2_KLEIN
from rism.export.families.step1x.model import STEP1X_FAMILIES
from rism.export.spec import FamilySpec

__all__ = ["FAMILIES"]

FAMILIES: tuple[FamilySpec, ...] = (FLUX2_KLEIN, *STEP1X_FAMILIES)
