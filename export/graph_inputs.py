"""Tracing each of a bundle's graphs: its inputs, its free dimensions, its names."""

from __future__ import annotations

import onnx_ir as ir
import torch

from rism.export.graphs import CaptureGraph, CaptureOptions
from rism.export.precision import Precision
from rism.export.spec import ModelSpec
from rism.export.trace import Input, trace
from rism.export.weightless import Part

__all__ = ["Size", "graph_name", "trace_text", "trace_transformer", "trace_vae"]

Size = tuple[int, int] | None
"""Width and height of a graph of fixed size, or None: any size."""


def graph_name(name: str, size: Size) -> str:
    """A graph's name in the manifest."""
    return name if size is None else f"{name}@{size[0]}x{size[1]}"


def trace_text(part: Part, spec: ModelSpec) -> ir.Model:
    """Trace the text encoder: any number of prompts of the model's length."""
    shape, free = (2, spec.prompt.max_length), {0: "batch"}
    return trace(
        part.module,
        {
            "input_ids": Input(shape, free, torch.int64),
            "attention_mask": Input(shape, free, torch.int64),
        },
        outputs=["prompt_embeds"],
    )


def trace_vae(part: Part, spec: ModelSpec, size: Size) -> ir.Model:
    """Trace the VAE encoder."""
    token = spec.geometry.token_px
    width, height = size or (4 * token, 6 * token)
    free = {} if size else {2: "height", 3: "width"}
    return trace(
        part.module,
        {"image": Input((1, 3, height, width), free)},
        outputs=["clean_latents"],
        named_outputs={} if size else {"clean_latents": {1: "tokens"}},
    )


def trace_transformer(
    part: Part, spec: ModelSpec, options: CaptureOptions, precision: Precision, size: Size
) -> ir.Model:
    """Trace the transformer with one capture mode; a fixed size has a batch of one."""
    token, length = spec.geometry.token_px, spec.prompt.max_length
    batch = 1 if size else 2
    tokens = (size[0] // token) * (size[1] // token) if size else 20
    by_batch = {} if size else {0: "batch"}
    by_token = {} if size else {0: "tokens"}
    inputs = {
        "clean_latents": Input(
            (batch, tokens, spec.latent_channels), {} if size else {0: "batch", 1: "tokens"}
        ),
        "noise": Input((1, tokens, spec.latent_channels), {} if size else {1: "tokens"}),
        "prompt_embeds": Input((batch, length, spec.prompt_dim), by_batch),
        "prompt_weights": Input((batch, length), by_batch),
        "positions": Input((tokens, 2), by_token),
    }
    if options.mode == "scores":
        inputs["tau"] = Input((1,), {})
    return trace(
        CaptureGraph(part.module, spec, options, precision), inputs, outputs=options.outputs
    )
