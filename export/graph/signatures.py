"""Tracing each of a bundle's graphs: its inputs, its free dimensions, its names."""

from __future__ import annotations

import onnx_ir as ir
import torch

from rism.export.checkpoint.meta_modules import Part
from rism.export.graph.capture_graph import CaptureGraph, CaptureOptions
from rism.export.graph.trace import Input, trace
from rism.export.precision import Precision
from rism.export.spec import ModelSpec, SingleStepDiT

Size = tuple[int, int] | None
"""Width and height of a graph of fixed size, or None: any size."""


def graph_name(name: str, size: Size) -> str:
    """A graph's name in the manifest."""
    return name if size is None else f"{name}@{size[0]}x{size[1]}"


def trace_text(part: Part, spec: ModelSpec) -> ir.Model:
    """Trace the text encoder: any number of prompts, of the model's length or of their own."""
    rules = spec.prompt
    if rules.vision is None:
        shape, free = (2, rules.max_length), {0: "batch"}
        ids = Input(shape, free, torch.int64)
        return trace(
            part.module, {"input_ids": ids, "attention_mask": ids}, outputs=["prompt_embeds"]
        )
    length = rules.drop + 24
    ids = Input((2, length), {0: "batch", 1: "sequence"}, torch.int64)
    inputs = {
        "input_ids": ids,
        "attention_mask": ids,
        "position_ids": Input((3, 2, length), {1: "batch", 2: "sequence"}, torch.int64),
        "image_embeds": Input((6, spec.text_dim), {0: "picture_tokens"}),
    }
    if spec.prompt_dim != spec.text_dim:
        inputs["quoted_mask"] = ids
    return trace(
        part.module,
        inputs,
        outputs=["prompt_embeds"],
        named_outputs={"prompt_embeds": {1: "kept_tokens"}},
    )


def trace_vision(part: Part, spec: ModelSpec) -> ir.Model:
    """Trace the tower that looks at the image, which may have any number of patches."""
    rules = spec.prompt.vision
    assert rules is not None, "only models whose text encoder looks have one"
    patches = 6 * rules.merge**2
    values = 3 * rules.frames * rules.patch_px**2
    return trace(
        part.module,
        {
            "pixel_values": Input((patches, values), {0: "patches"}),
            "patch_positions": Input((patches, 2), {0: "patches"}, torch.int64),
        },
        outputs=["image_embeds"],
        named_outputs={"image_embeds": {0: "picture_tokens"}},
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


def trace_modulation(part: Part, spec: ModelSpec) -> ir.Model:
    """Trace the modulation of a transformer: any number of prompts of one length."""
    free = {0: "batch", 1: "prompt_tokens"}
    return trace(
        part.module,
        {
            "prompt_embeds": Input((2, 24, spec.prompt_dim), free),
            "prompt_mask": Input((2, 24), free),
        },
        outputs=["modulation"],
    )


def trace_transformer(
    part: Part,
    spec: ModelSpec,
    options: CaptureOptions,
    precision: Precision,
    size: Size,
    *,
    written_out: bool = False,
) -> ir.Model:
    """Trace the transformer with one capture mode; a fixed size has a batch of one.

    `written_out` makes the form for CPUs.
    """
    token, rules = spec.geometry.token_px, spec.prompt
    batch = 1 if size else 2
    tokens = (size[0] // token) * (size[1] // token) if size else 20
    by_batch = {} if size else {0: "batch"}
    by_token = {} if size else {0: "tokens"}
    # Prompts without padding, or with one row of it, have a length of their own, whatever the
    # image's size.
    own = {1: "prompt_tokens"} if rules.padding == "none" or rules.shared_padding else {}
    length = 24 if own else rules.max_length
    prompt = by_batch | own
    inputs = {
        "clean_latents": Input(
            (batch, tokens, spec.latent_channels), {} if size else {0: "batch", 1: "tokens"}
        ),
        "noise": Input((1, tokens, spec.latent_channels), {} if size else {1: "tokens"}),
        "prompt_embeds": Input((batch, length, spec.prompt_dim), prompt),
        "prompt_weights": Input((batch, length), prompt),
        "positions": Input((tokens, 2), by_token),
    }
    if spec.prompt_mask:
        inputs["prompt_mask"] = Input((batch, length), prompt)
    if rules.positions == "grid":
        inputs["prompt_positions"] = Input((length, 3), {0: "prompt_tokens"} if own else {})
    dit: SingleStepDiT = part.module  # type: ignore[assignment]  # whose forward is a module's
    if dit.modulation_dim:
        inputs["modulation"] = Input((batch, dit.modulation_dim), by_batch)
    if options.mode == "scores":
        inputs["tau"] = Input((1,), {})
    return trace(
        CaptureGraph(
            part.module,
            spec,
            options,
            precision,
            written_out=written_out,
            columns=None if size is None else size[0] // token,
        ),
        inputs,
        outputs=options.outputs,
    )
