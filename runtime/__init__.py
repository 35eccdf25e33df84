"""The runtime: opens bundles and segments images, without torch.

Names are imported on first use, so that importing this package is quick.
"""

from typing import TYPE_CHECKING

from rism.lazy_names import lazy_names

if TYPE_CHECKING:
    from rism.runtime.bundle.reader import Bundle
    from rism.runtime.errors import BundleError, InputError, OutputError, ProviderError, RismError
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

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "bundle.reader": ["Bundle"],
        "errors": ["BundleError", "InputError", "OutputError", "ProviderError", "RismError"],
        "image.loading": ["load_image"],
        "prompt.instruction_file": ["InstructionFile"],
        "prompt.refiner": ["Refiner"],
        "result.segmentation": ["Segmentation"],
        "segmenter": ["Segmenter"],
    },
)
