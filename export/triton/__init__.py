"""Model repositories of Triton Inference Server. Needs the `triton` extra, and no PyTorch."""

from rism.export.triton.config import Serving
from rism.export.triton.repository import export_triton
from rism.export.triton.serving_options import TritonOptions, TritonReport

__all__ = ["Serving", "TritonOptions", "TritonReport", "export_triton"]
