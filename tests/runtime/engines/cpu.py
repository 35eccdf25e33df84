"""The engines of a bundle, on the CPU."""

from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines.base import Engine
from rism.runtime.engines.selection import EngineRequest, select_engines


def cpu_engines(bundle: Bundle, capture: str) -> dict[str, Engine]:
    return select_engines(bundle, capture, ["onnxruntime-cpu"], EngineRequest()).load()
