"""Optimisation profiles: which sizes of its inputs a graph is compiled for."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import TypeAlias

from rism.runtime.bundle.engine_spec import ShapeRange
from rism.runtime.bundle.graph_spec import TensorSpec
from rism.runtime.bundle.manifest import Geometry
from rism.runtime.bundle.prompt_spec import PromptRules
from rism.runtime.errors import InputError, one_line
from rism.runtime.image import geometry

# Smallest, usual and largest.
Range: TypeAlias = tuple[int, int, int]
BATCH: Range = (1, 1, 8)
"""Fewest, usual and most expressions of a run, unless something else is asked for."""

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})", re.ASCII)
_SMALLEST_PX = 256
# Tokens of an expression and what stands around it, beside those of the image.
_USUAL_WORDS = 24


def ranges(
    rules: Geometry,
    prompt: PromptRules,
    noise_rows: int,
    *,
    shapes: str | None = None,
    batch: Range = BATCH,
) -> dict[str, Range]:
    """Say how large each named dimension of a bundle's graphs can be.

    The bundle has noise for `noise_rows` tokens. `shapes` is "MIN/OPT/MAX", one size, "static", or
    None for what the geometry can ask for; see `rism build --shapes`. `batch` are the fewest, usual
    and most expressions of a run.

    Raises:
        InputError: `shapes` cannot be read, or the bundle cannot have such sizes.
    """
    sizes = _images(rules, noise_rows, shapes)
    token = rules.token_px
    found = {
        "batch": batch,
        "tokens": _range((w // token) * (h // token) for w, h in sizes),
        "width": _range(w for w, _ in sizes),
        "height": _range(h for _, h in sizes),
    }
    if shapes is None and not rules.sizes:
        found |= _by_geometry(rules, noise_rows)
    seen = 0, 0, 0
    if prompt.vision is not None:
        cell = prompt.vision.cell_px**2
        low, high = max(1, prompt.vision.min_pixels // cell), -(-prompt.vision.max_pixels // cell)
        seen = low, (low + high) // 2, high
        found["picture_tokens"] = seen
        found["patches"] = _range(count * prompt.vision.merge**2 for count in seen)
    longest = prompt.max_length
    own = 1, min(longest, seen[1] + _USUAL_WORDS), longest
    found["prompt_tokens"] = own
    found["sequence"] = _range(count + prompt.drop for count in own)
    return found


def _range(counts: Iterable[int]) -> Range:
    low, usual, high = counts
    return low, usual, high


def profile(inputs: Mapping[str, TensorSpec], known: Mapping[str, Range]) -> dict[str, ShapeRange]:
    """Turn the sizes of dimensions, as `ranges` gives them, into shapes of a graph's inputs.

    Raises:
        InputError: a dimension has a name that is not known.
    """
    found = {}
    for logical, tensor in inputs.items():
        sides: list[Range] = []
        for size in tensor.shape:
            if isinstance(size, int):
                sides.append((size, size, size))
            elif size in known:
                sides.append(known[size])
            else:
                raise InputError(
                    f"input '{logical}' of a graph has a dimension '{one_line(size)}', "
                    f"expected one of {', '.join(known)}: export the bundle again"
                )
        found[logical] = ShapeRange(*(tuple(side[at] for side in sides) for at in range(3)))
    return found


def _images(rules: Geometry, noise_rows: int, shapes: str | None) -> list[tuple[int, int]]:
    """Return the smallest, usual and largest (width, height) of an image, in pixels."""
    if shapes == "static" or (shapes is None and rules.sizes):
        if not rules.sizes:
            raise InputError(
                "--shapes static needs a bundle of fixed sizes, and this one takes any: export it "
                "with --sizes 1024x1024, or pass one size, --shapes 1024x1024"
            )
        return [rules.sizes[0]] * 3
    if rules.sizes:
        raise InputError(
            f"--shapes is '{one_line(shapes)}', this bundle has fixed sizes, expected static or "
            "nothing: export it again with other --sizes"
        )
    if shapes is None:
        level = rules.size_level
        square = geometry.plan((level, level), rules)
        side = square.grid_hw[0] * rules.token_px
        return [(side, side)] * 3
    parts = shapes.split("/")
    matches = [_SIZE.fullmatch(part.strip()) for part in parts]
    if len(parts) not in (1, 3) or not all(matches):
        raise InputError(
            f"--shapes is '{one_line(shapes)}', expected MIN/OPT/MAX, such as "
            "512x512/1024x1024/1536x1536, one such size, or static"
        )
    sizes = [(int(match[1]), int(match[2])) for match in matches if match is not None]
    sizes = sizes * 3 if len(sizes) == 1 else sizes
    for width, height in sizes:
        if min(width, height) < 1 or width % rules.multiple_px or height % rules.multiple_px:
            raise InputError(
                f"--shapes has {width}x{height}, expected both sides a multiple of "
                f"{rules.multiple_px} pixels for this model"
            )
        tokens = (width // rules.token_px) * (height // rules.token_px)
        if tokens > noise_rows:
            raise InputError(
                f"--shapes has {width}x{height}, which makes {tokens} tokens, expected at most "
                f"{noise_rows} for this bundle"
            )
    for small, large in pairwise(sizes):
        if small[0] > large[0] or small[1] > large[1]:
            raise InputError(f"--shapes is '{one_line(shapes)}', expected growing sizes")
    return sizes


def _by_geometry(rules: Geometry, noise_rows: int) -> dict[str, Range]:
    """Return the ranges of the sizes that images of any shape are resized to."""
    plans = [geometry.plan(size, rules) for size in _extreme_images(rules)]
    square = geometry.plan((rules.size_level, rules.size_level), rules)
    rows, columns = ([each.grid_hw[at] * rules.token_px for each in plans] for at in (0, 1))
    usual = square.grid_hw[0] * rules.token_px
    tokens = [each.tokens for each in plans]
    return {
        # What lies between two steps may round to a few tokens less.
        "tokens": (min(tokens) * 15 // 16, square.tokens, max(noise_rows, *tokens)),
        "height": (min(rows), usual, max(rows)),
        "width": (min(columns), usual, max(columns)),
    }


def _extreme_images(rules: Geometry) -> Iterator[tuple[int, int]]:
    """Yield sizes of large images in every aspect ratio, and a small one if it stays small."""
    # Large ones, whose sides round to no other aspect ratio than the one that is meant.
    level, steps = 16 * rules.size_level, 512
    for step in range(-steps, steps + 1):
        aspect = rules.max_aspect ** (abs(step) / steps)
        short = math.ceil(level / aspect**0.5)
        long = min(int(level * aspect**0.5), int(short * rules.max_aspect))
        yield (short, long) if step < 0 else (long, short)
    if rules.resize == "shrink":
        smallest = min(rules.size_level, _SMALLEST_PX)
        yield (smallest, smallest)
