"""Referring segmentation from one forward pass of an image-editing diffusion transformer.

>>> from rism import Segmenter
>>> result = Segmenter.from_bundle("flux2-klein/").segment("street.jpg", "the green van")
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rism.lazy_names import lazy_names

if TYPE_CHECKING:
    from rism.runtime import (
        BundleError,
        InputError,
        OutputError,
        ProviderError,
        RismError,
        Segmentation,
        Segmenter,
    )

__version__ = "0.1.0"
__all__ = [
    "BundleError",
    "InputError",
    "OutputError",
    "ProviderError",
    "RismError",
    "Segmentation",
    "Segmenter",
    "__version__",
]

# Since 1.29 onnxruntime sends Microsoft what it runs (names and hashes of graphs, the machine)
# unless this is set before it is imported; its own Privacy.md. A user's own choice stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# The wheel has runtime/ inside this folder; a checkout has it beside this folder, and
# works without being installed (the tests, `python -m rism`) because of these lines.
_ROOT = Path(__file__).resolve().parent.parent
if not (_ROOT / "rism" / "runtime").is_dir() and (_ROOT / "runtime" / "__init__.py").is_file():
    __path__.append(str(_ROOT))

__getattr__, __dir__ = lazy_names(__name__, {"runtime": __all__})
