"""The names that the exporter's options take, each list written once; only `typing` is imported."""

from typing import Literal, get_args

# What a bundle's graphs compute in, or the integers that their weights are.
GraphPrecision = Literal["fp32", "bf16", "fp16", "int8", "int4"]
GRAPH_PRECISIONS: tuple[GraphPrecision, ...] = get_args(GraphPrecision)

# What PyTorch computes in where the whole model runs.
FloatPrecision = Literal["fp32", "bf16", "fp16"]

# Numbers of a row of a weight that share a scale.
BlockSize = Literal["16", "32", "64", "128", "256"]

# Where features are read in a transformer block: the attention's output, its modulated input, or
# the block's output.
FeatureSite = Literal["mmsa", "adaln", "block"]
FEATURE_SITES: tuple[FeatureSite, ...] = get_args(FeatureSite)

# What the graphs read and leave out: all as the paper does, or less of it for less work.
Preset = Literal["paper", "fast"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
# Blocks that attention is read from, and k, where only every k-th row and column is noisy.
PRESET_CHOICES: dict[Preset, tuple[str, int]] = {"paper": ("all", 1), "fast": ("to-features", 2)}
MAX_NOISY_GRID = 8

# How much of an exported model is compared with PyTorch.
ParityMode = Literal["auto", "full", "blocks"]
PARITY_MODES: tuple[ParityMode, ...] = get_args(ParityMode)

# What the instruction refiner computes in, and on what.
RefinerPrecision = Literal["bf16", "fp32"]
REFINER_PRECISIONS: tuple[RefinerPrecision, ...] = get_args(RefinerPrecision)
RefinerDevice = Literal["auto", "cpu", "cuda"]
REFINER_DEVICES: tuple[RefinerDevice, ...] = get_args(RefinerDevice)

# Where Triton Inference Server runs its models.
ServerDevice = Literal["auto", "gpu", "cpu"]
