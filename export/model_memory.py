"""What a model takes of memory in each precision, before it is exported."""

from __future__ import annotations

from collections.abc import Iterator

from rism.export.bundle_writer import open_parts
from rism.export.checkpoint.meta_modules import Part
from rism.export.exporter import open_model
from rism.export.families.find import find_checkpoint
from rism.export.precision import find_precision
from rism.export.spec import ModelSpec
from rism.runtime.diagnostics.memory_plan import MemoryForm
from rism.runtime.engines.memory import PartMemory, RunSizes
from rism.runtime.engines.stages import block_of

_PRECISIONS = ("fp32", "bf16", "fp16", "int8", "int4")


def model_forms(model: str, *, offline: bool = False) -> Iterator[MemoryForm]:
    """Yield a model's forms on a GPU, by precision of the transformer and the text side.

    Only headers and small files are read.

    Args:
        model: as `rism.export.exporter.export_bundle` takes it.
        offline: read what the hub's cache holds.

    Raises:
        CheckpointError, UnsupportedModelError: as `export_bundle` does.
    """
    opened = open_model(find_checkpoint(model, offline=offline, weights=False))
    for name in _PRECISIONS:
        precision = find_precision(name)
        sizes = _sizes(opened.spec, 2 if name == "bf16" else 4)
        parts = open_parts(opened, precision, precision)
        wide = name == "fp32"
        found = tuple(_part_memory(key, part, sizes, wide=wide) for key, part in parts.items())
        yield MemoryForm(name, True, found)


def _part_memory(key: str, part: Part, sizes: RunSizes, *, wide: bool) -> PartMemory:
    """Measure a part; a graph that computes in float32 widens what is stored in 16 bits."""
    stored = part.stored_nbytes()
    if wide:
        stored = {name: 4 * tensor.numel() for name, tensor in part.tensors()}
    blocks: dict[str, int] = {}
    for name, nbytes in stored.items():
        block = block_of(name) or ""
        blocks[block] = blocks.get(block, 0) + nbytes
    return PartMemory(
        key,
        sum(stored.values()),
        sizes.activation(key, on_gpu=True),
        None if key == "vae_encoder" else max(blocks.values()),
    )


def _sizes(spec: ModelSpec, nbytes: int) -> RunSizes:
    vision = spec.prompt.vision
    return RunSizes(
        tokens=spec.noise_rows,
        token_px=spec.geometry.token_px,
        prompt=spec.prompt.max_length,
        dropped=spec.prompt.drop,
        width=spec.feature_dim,
        text_width=spec.prompt_dim,
        patches=0 if vision is None else vision.max_pixels // vision.patch_px**2,
        nbytes=nbytes,
    )
