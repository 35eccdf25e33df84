"""Kinds of scenarios: what each measures, what it can be told, and where its code is.

Nothing here imports what it takes to measure. A parameter's default says its type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import cast

from benchmarks.harness.rows import Job, Row

__all__ = ["KINDS", "Kind", "Value"]

Value = bool | int | float | str | list[int] | list[str]


@dataclass(frozen=True)
class Kind:
    """One kind of scenario.

    Attributes:
        what: it measures.
        module: of this package.
        function: in it, from a `Job` to rows, each given out as soon as it is known.
        parameters: by name, with their defaults.
        alone: a parameter that is a list; each of its values is measured by a process of its own.
        packages: whose versions matter besides those that are always told.
    """

    what: str
    module: str
    function: str
    parameters: Mapping[str, Value] = field(default_factory=dict)
    alone: str | None = None
    packages: tuple[str, ...] = ()

    def load(self) -> Callable[[Job], Iterable[Row]]:
        """Import what measures it."""
        module = import_module(f"benchmarks.scenarios.{self.module}")
        return cast(Callable[[Job], Iterable[Row]], getattr(module, self.function))


_TORCH = ("torch", "diffusers", "transformers")
_ONNX = ("onnx", "onnx-ir", "onnxscript")
_GPU = ("onnxruntime-gpu", "triton")

KINDS: dict[str, Kind] = {
    "postprocess": Kind(
        "from a transformer's outputs to a mask",
        "postprocess",
        "measure",
        {"grids": ["32x32"], "features": 3072, "blocks": [57], "size": "640x480", "tau": 0.8},
        packages=("torch",),
    ),
    "contour": Kind(
        "from a map on the token grid to a mask along the picture's edges",
        "contour",
        "measure",
        {"grids": ["16x16", "64x64"], "size": "640x480"},
    ),
    "preprocess": Kind(
        "from a picture's pixels to the VAE's input",
        "preprocess",
        "measure",
        {"sizes": ["640x480", "1920x1080"]},
        packages=_TORCH,
    ),
    "encoder": Kind(
        "a text encoder or a VAE encoder as a bundle has it",
        "encoders",
        "measure",
        {"part": "text_encoder", "batch": 1, "size": "128x128", "plain": True},
        packages=(*_TORCH, *_ONNX),
    ),
    "dit": Kind(
        "the diffusion transformer, by engine and by what is captured",
        "dit",
        "measure",
        {
            "cases": ["small@256"],
            "engines": ["torch", "onnxruntime"],
            "variants": ["no capture", "paper", "vectors"],
            "reference": "paper mean",
            "device": "cpu",
            "precision": "fp32",
            "tolerance": 1e-3,
            "mask_tolerance": 0.01,
            "compile_backend": "inductor",
        },
        alone="engines",
        packages=(*_TORCH, *_ONNX, *_GPU),
    ),
    "picture": Kind(
        "from a picture and an expression to a mask, whole",
        "picture",
        "measure_picture",
        {"checkpoint": "mini", "bundle": "mini", "expression": "the green van"},
        packages=_TORCH,
    ),
    "expressions": Kind(
        "several expressions on one picture, together and one by one",
        "picture",
        "measure_expressions",
        {"bundle": "mini", "counts": [1, 4, 8], "provider": "cpu"},
    ),
    "cold_start": Kind(
        "a process from nothing to a mask",
        "processes",
        "measure_cold_start",
        {"expression": "the green van"},
        packages=_TORCH,
    ),
    "import_time": Kind(
        "a process that imports and ends", "processes", "measure_import", packages=_TORCH
    ),
    "install_size": Kind(
        "what lies on the disk after an installation",
        "install",
        "measure",
        {"extra": "cpu", "against": "export"},
    ),
    "export": Kind(
        "from a checkpoint to a bundle, in a process of its own",
        "export",
        "measure",
        {"shape": "mini", "parity": "full"},
        packages=(*_TORCH, *_ONNX),
    ),
    "folder": Kind("a folder of pictures", "others", "measure_folder", {"pictures": 40}),
    "providers": Kind(
        "every provider and engine that a bundle has",
        "others",
        "measure_providers",
        {"bundle": "mini", "build": False, "expressions": 4},
        packages=(*_GPU, "tensorrt", "tensorrt-rtx"),
    ),
    "probe": Kind(
        "one block's probe beside the attention that it reads",
        "others",
        "measure_probe",
        {"case": "small", "device": "cpu"},
        packages=("torch", "triton"),
    ),
    "postprocess_gpu": Kind(
        "post-processing where an engine leaves its outputs",
        "others",
        "measure_postprocess_gpu",
        {"case": "step1x-edit at 512", "capture": "vectors", "expressions": 1},
        packages=("cupy-cuda13x",),
    ),
}
