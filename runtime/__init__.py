"""The runtime: reads a bundle, segments pictures. Never needs torch.

Names are imported when first asked for, so that importing this package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rism.runtime.bundle.reader import Bundle
    from rism.runtime.errors import (
        BundleError,
        InputError,
        OutputError,
        ProviderError,
        RismError,
    )
    from rism.runtime.image.loading import load_image
    from rism.runtime.prompt.instruction_file import InstructionFile
    from rism.runtime.prompt.refiner import Refiner
    from rism.runtime.result.segmentation import Segmentation
    from rism.runtime.segmenter import Segmenter

__all__ = [
    "Bundle",
    "BundleError",
    "InputError",
    "InstructionFile",
    "OutputError",
    "ProviderError",
    "Refiner",
    "RismError",
    "Segmentation",
    "Segmenter",
    "load_image",
]

_HOMES = {
    "Bundle": "bundle",
    "BundleError": "errors",
    "InputError": "errors",
    "InstructionFile": "instructions",
    "OutputError": "errors",
    "ProviderError": "errors",
    "Refiner": "refine",
    "RismError": "errors",
    "Segmentation": "result",
    "Segmenter": "segmenter",
    "load_image": "images",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
