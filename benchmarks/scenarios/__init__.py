"""Kinds of scenarios, a module each: what each measures, and its parameters with their defaults.

Nothing here imports the packages that it takes to measure.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import cast

from benchmarks.harness.rows import Row, Task

Value = bool | int | float | str | list[int] | list[str]


@dataclass(frozen=True)
class Kind:
    """One kind of scenario.

    Attributes:
        what: it measures.
        code: module of this package and, after a colon, its function from a `Task` to rows.
        parameters: by name, with defaults that have their types.
        alone: a parameter that is a list; each of its values is measured by a process of its own.
        packages: whose versions matter besides those that are always told.
    """

    what: str
    code: str
    parameters: Mapping[str, Value] = field(default_factory=dict)
    alone: str | None = None
    packages: tuple[str, ...] = ()

    def load(self) -> Callable[[Task], Iterable[Row]]:
        """Import the function that measures it."""
        module, _, function = self.code.partition(":")
        found = getattr(import_module(f"benchmarks.scenarios.{module}"), function or "measure")
        return cast(Callable[[Task], Iterable[Row]], found)


_TORCH = ("torch", "diffusers", "transformers")
_ONNX = ("onnx", "onnx-ir", "onnxscript")
_GPU = ("onnxruntime-gpu", "triton")
_TENSORRT = ("tensorrt", "tensorrt-rtx")
_RAY = ("ray", "pyarrow")
_BATCH: dict[str, Value] = {"images": 5000, "size": "640x480", "part": 0, "folder": ""}

KINDS: dict[str, Kind] = {
    "postprocess": Kind(
        "from a transformer's outputs to a mask",
        "postprocess",
        {"grids": ["32x32"], "features": 3072, "blocks": [57], "size": "640x480"},
        packages=("torch",),
    ),
    "contour": Kind(
        "from a map on the token grid to a mask along the image's edges",
        "contour",
        {"grids": ["16x16", "64x64"], "size": "640x480"},
    ),
    "contour_noise": Kind(
        "boundary IoU of contours where the map on the token grid is noisy",
        "contour_noise",
        {"grids": ["32x24"], "percents": [0, 20, 60], "size": "640x480", "images": 40},
        packages=("scikit-image", "scikit-learn"),
    ),
    "quality": Kind(
        "mIoU of what rism does beyond the published method, part by part",
        "quality",
        {
            "bundle": "",
            "ways": "parts",
            "kinds": ["plain", "same-kind", "fine"],
            "file": "",
            "split": "test",
            "count": 300,
        },
    ),
    "dit": Kind(
        "the diffusion transformer, by engine and by what is captured",
        "dit",
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
    "image": Kind(
        "from an image and an expression to a mask", "image:measure_image", packages=_TORCH
    ),
    "expressions": Kind(
        "several expressions on one image, together and one by one",
        "image:measure_expressions",
        {"counts": [1, 4, 8]},
    ),
    "cold_start": Kind(
        "a process from nothing to a mask", "processes:measure_cold_start", packages=_TORCH
    ),
    "import_time": Kind(
        "a process that imports and ends", "processes:measure_import", packages=_TORCH
    ),
    "serve": Kind(
        "the service under many clients, against a loop of calls",
        "serve",
        {"clients": 32, "seconds": 60.0, "warm_seconds": 10.0, "images": 40, "size": "640x480"},
        packages=("starlette", "uvicorn"),
    ),
    "serve_hostile": Kind(
        "the service under hostile requests",
        "serve:measure_hostile",
        {"requests": 10_000, "warm_rounds": 20, "growth": 0.1},
    ),
    "serve_restart": Kind("the service killed and started again", "serve:measure_restart"),
    "batch": Kind(
        "a folder of images through rism map, against rism run",
        "batch",
        {**_BATCH, "memory_every_s": 10.0, "growth": 0.1},
        packages=_RAY,
    ),
    "batch_killed": Kind(
        "rism map killed at random moments and resumed",
        "batch:measure_killed",
        {**_BATCH, "kills": 5, "pause_s": 10.0, "seed": 0},
        packages=_RAY,
    ),
    "batch_nodes": Kind(
        "rism map on two Ray nodes, one of them killed",
        "batch:measure_nodes",
        _BATCH,
        packages=_RAY,
    ),
    "full_size": Kind(
        "a full-size model from an image file to a mask file, on a CPU",
        "full_size",
        {
            "model": "klein-4b",
            "blocks": "all",
            "precision": "int4",
            "text_precision": "int4",
            "size_level": 512,
            "memory": [""],
            "compare": True,
            "folder": "",
        },
        packages=(*_TORCH, *_ONNX),
    ),
    "memory_plan": Kind(
        "memory of published models on a GPU, by precision and residency, computed",
        "memory_plan",
        {
            "models": ["klein-4b", "klein-9b", "step1x-1.0"],
            "cards_gb": [8, 12, 16, 24, 32, 48, 64, 80],
            "usable": 0.92,
        },
        packages=_TORCH,
    ),
    "stages": Kind(
        "every graph on the CPU: a plain export, the graph, its form for CPUs",
        "cpu_stages",
        {"model": "mini", "blocks": "all", "size_level": 0, "tolerance": 1e-3},
        packages=(*_TORCH, *_ONNX),
    ),
    "export": Kind(
        "from a checkpoint to a bundle, in a process of its own",
        "export",
        {"shape": "mini", "blocks": "all", "arguments": ["--parity", "full"], "run": False},
        packages=(*_TORCH, *_ONNX),
    ),
    "fp8_masks": Kind(
        "mean IoU of masks in FP8 with those in float32",
        "fp8",
        {"precisions": ["fp32"], "rules": ["max"], "scenes": 100, "samples": 32},
        packages=("onnx-ir",),
    ),
    "nvfp4_masks": Kind(
        "mean IoU of masks in NVFP4 with those in float32",
        "fp8:measure_nvfp4",
        {"scenes": 100, "samples": 32},
        packages=("onnx-ir",),
    ),
    "few_bits_layers": Kind(
        "errors of layers' outputs with weights in few bits, over those of plain rounding",
        "few_bits:measure_layers",
        {"samples": 8},
        packages=(*_TORCH, *_ONNX),
    ),
    "few_bits_masks": Kind(
        "mean IoU of masks with weights in few bits with those in float32",
        "few_bits",
        {"precisions": ["int8", "int4"], "scenes": 100, "samples": 32},
        packages=(*_TORCH, *_ONNX),
    ),
    "engines": Kind(
        "building engines of TensorRT for RTX",
        "engines",
        {
            "models": ["klein-9b", "step1x-1.0"],
            "blocks": ["1+2"],
            "graphs": ["transformer.vectors", "transformer.scores"],
            "precisions": ["bf16"],
        },
        packages=_TENSORRT,
    ),
    "folder": Kind(
        "a folder of images",
        "folder",
        {"images": [40], "size": "640x480", "ways": ["single calls", "overlapped"]},
    ),
    "providers": Kind(
        "every provider and engine that a bundle has",
        "providers",
        {"bundle": "mini", "build": False, "expressions": 4},
        packages=(*_GPU, *_TENSORRT),
    ),
    "provider": Kind(
        "one provider or engine of a bundle",
        "providers:measure_one",
        {"bundle": "mini", "provider": "onnxruntime-cpu", "engine": "", "expressions": 4},
        packages=(*_GPU, *_TENSORRT),
    ),
    "probe": Kind(
        "one block's probe beside the attention that it reads",
        "probe",
        {"case": "small", "device": "cpu"},
        packages=("torch", "triton"),
    ),
    "postprocess_gpu": Kind(
        "post-processing where an engine leaves its outputs",
        "postprocess_gpu",
        {"case": "step1x-edit at 512"},
        packages=("cupy-cuda13x",),
    ),
}
