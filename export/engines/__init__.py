"""Engines of a bundle's graphs: TensorRT and TensorRT for RTX. Needs no PyTorch."""

from __future__ import annotations

from rism.export.engines.build import BuildReport, build_engines
from rism.export.engines.errors import BuildError
from rism.export.engines.options import BuildOptions

__all__ = ["BuildError", "BuildOptions", "BuildReport", "build_engines"]
