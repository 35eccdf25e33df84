"""Results as JSON and as pictures."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from rism.runtime.arrays import Float32, Uint8
from rism.runtime.result.polygons import polygons
from rism.runtime.result.rendering import encode_png, overlay
from rism.runtime.result.rle import coco_rle
from rism.runtime.result.segmentation import Segmentation
from rism.runtime.segmenter import Segmenter


def segment_answer(
    segmenter: Segmenter, results: Sequence[Segmentation], wanted: Collection[str]
) -> dict[str, Any]:
    """Return the body of `POST /v1/segment`."""
    timings: dict[str, float] = {}
    for result in results:
        for stage, took in result.timings_ms.items():
            timings[stage] = timings.get(stage, 0.0) + took
    return {
        "results": [_result(result, wanted) for result in results],
        "timings_ms": timings,
        "provider": segmenter.provider,
        "precision": segmenter.precision,
        "bundle": {"name": segmenter.manifest.model.name, "digest": segmenter.bundle.digest},
    }


def _result(result: Segmentation, wanted: Collection[str]) -> dict[str, Any]:
    found = result.to_json_dict()
    del found["timings_ms"], found["provider"], found["precision"], found["model"]
    found["rle"] = coco_rle(result.mask_hw)
    if "polygons" in wanted:
        found["polygons"] = [[ring.tolist() for ring in part] for part in polygons(result.mask_hw)]
    if "mask_png" in wanted:
        found["mask_png"] = base64.b64encode(mask_png(result)).decode()
    if "maps" in wanted:
        found["maps"] = _maps(result)
    return found


def _maps(result: Segmentation) -> Mapping[str, Any]:
    """Return the maps on the token grid: rows of numbers, and where the grid lies in the image."""
    maps: dict[str, Any] = {
        "crop_xyxy": list(result.plan.crop_xyxy),
        "resized_wh": list(result.plan.resized_wh),
        "score": _rows(result.score_map),
        "coarse": _rows(result.coarse),
        "refined": _rows(result.refined),
    }
    if result.token_attention is not None:
        maps["words"] = [
            {"text": text, "attention": _rows(attention)} for text, attention in words(result)
        ]
    return maps


def words(result: Segmentation) -> list[tuple[str, Float32]]:
    """Return the words of the instruction, each with the sum of the attention to its tokens.

    Returns:
        Texts, and (N_h, N_w) float32; the single tokens of the prompt where they do not make up
        the instruction. Nothing without token attention.
    """
    if result.token_attention is None:
        return []
    tokens = list(zip(result.tokens, result.token_attention, strict=True))
    start = "".join(result.tokens).rfind(result.instruction)
    if start < 0:
        return [(text.strip(), attention) for text, attention in tokens if text.strip()]
    end = start + len(result.instruction)
    found: list[tuple[str, Float32]] = []
    at, inside = 0, False
    for text, attention in tokens:
        place, at = at, at + len(text)
        if at <= start or place >= end or not text.strip():
            inside = False
        elif inside and not text[0].isspace():
            found[-1] = (found[-1][0] + text.rstrip(), found[-1][1] + attention)
            inside = not text[-1].isspace()
        else:
            found.append((text.strip(), attention))
            inside = not text[-1].isspace()
    return found


def _rows(values: Float32) -> list[list[float]]:
    rounded: list[list[float]] = np.round(values.astype(np.float64), 4).tolist()
    return rounded


def mask_png(result: Segmentation) -> bytes:
    """Return the mask as a PNG, 255 where it is."""
    return encode_png(result.mask_hw.astype(np.uint8) * np.uint8(255))


def overlay_png(pixels: Uint8, results: Sequence[Segmentation]) -> bytes:
    """Return the image with the masks of all expressions, as a PNG."""
    return encode_png(overlay(pixels, results))
