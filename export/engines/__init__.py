"""Engines of a bundle's graphs: TensorRT and TensorRT for RTX. Needs no PyTorch."""

from rism.export.engines.build import build_engines
from rism.export.engines.build_options import BuildOptions
from rism.export.engines.report import BuildReport
from rism.export.errors import BuildError

__all__ = ["BuildError", "BuildOptions", "BuildReport", "build_engines"]
