"""The names that options take, each list written once.

Only `typing` is imported: the command line makes its choices from these types, and `--help` must
not wait for NumPy.
"""

from typing import Literal, get_args

# Dataset formats, and how far their polygons may be from the outline of a mask, pixels: from 0.5 on
# corners are cut off.
DatasetFormatName = Literal["coco", "yolo", "labelme", "cvat", "label-studio", "png"]
EPSILON = 0.4

# What a transformer graph outputs: docs/bundle.md, step 5.
CaptureName = Literal["vectors", "matrices", "scores"]
CAPTURES: tuple[CaptureName, ...] = get_args(CaptureName)

# What a TensorRT engine computes in.
EnginePrecision = Literal["fp32", "fp16", "bf16", "fp8", "nvfp4a16", "nvfp4"]
ENGINE_PRECISIONS: tuple[EnginePrecision, ...] = get_args(EnginePrecision)

# The types behind those names, as manifests and results call them; other engines mix several.
COMPUTE_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
PRECISION_OF_TYPE = {type_: name for name, type_ in COMPUTE_TYPES.items()}
# Of these there are only engines; the first loses the least.
ENGINES_ALONE = tuple(name for name in ENGINE_PRECISIONS if name not in COMPUTE_TYPES)

# Libraries that engines are built for, the preferred one first.
EngineTarget = Literal["tensorrt-rtx", "tensorrt"]
ENGINE_TARGETS: tuple[EngineTarget, ...] = get_args(EngineTarget)

# Prompt tokens whose attention counts: docs/bundle.md, step 5.
TokenSet = Literal["all", "valid", "instruction", "expression", "content", "head"]
TOKEN_SETS: tuple[TokenSet, ...] = get_args(TokenSet)

# How a mask is brought to the size of the image.
UpsamplingMethod = Literal["guided", "bilinear"]
UPSAMPLING_METHODS: tuple[UpsamplingMethod, ...] = get_args(UpsamplingMethod)
