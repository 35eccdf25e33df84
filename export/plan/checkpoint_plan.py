"""The plan of an export: what it will read, write and need."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from rism.export.checkpoint.locate import Checkpoint
from rism.export.checkpoint.meta_modules import Part
from rism.export.errors import ExportError
from rism.export.plan.text import count, existing, size
from rism.export.precision import Precision
from rism.export.spec import OpenModel
from rism.runtime.engines import memory
from rism.runtime.errors import OutputError

if TYPE_CHECKING:
    from rism.export.options import ExportOptions

# Libraries, and graphs in memory; measured at 9B.
_BASE_BYTES = 1_000 * 2**20
_GRAPH_BYTES = 64 * 2**20
# A tensor as it was read, cast, and transposed.
_COPIES = 3
# float32 weights once in the engine and once folded, and what flows between them.
_FULL_GATE_BYTES = 10
# Of a few blocks: mapped weights, and the largest of them cast up.
_LEAN_GATE = 2


@dataclass(frozen=True)
class PartPlan:
    """One graph's weights."""

    name: str
    parameters: int
    read_bytes: int
    write_bytes: int
    largest_bytes: int


@dataclass(frozen=True)
class ExportPlan:
    """What an export will read, write and need.

    Attributes:
        model: its name.
        family: the name of its family.
        source: where the checkpoint is.
        precision: what the graphs compute in.
        captures: the capture modes.
        sizes: "dynamic", or the fixed sizes.
        blocks: the transformer's double-stream and single-stream blocks.
        parts: the weights of each graph.
        parity: "full", or "blocks" where the whole model cannot be run in memory.
        disk_bytes: bytes needed at the output.
        disk_free: bytes free there.
        memory_bytes: bytes of memory needed.
        memory_free: bytes of memory free.
    """

    model: str
    family: str
    source: str
    precision: str
    captures: tuple[str, ...]
    sizes: str
    blocks: str
    parts: tuple[PartPlan, ...]
    parity: str
    disk_bytes: int
    disk_free: int
    memory_bytes: int
    memory_free: int
    revision: str = ""

    def table(self) -> str:
        """Return the plan as a table for people."""
        rows = [
            f"model        {self.model} ({self.family}) from {self.source}",
            f"transformer  {self.blocks}, captures {', '.join(self.captures)}",
            f"sizes        {self.sizes}",
            f"precision    {self.precision}",
            f"parity       {self.parity}",
            "",
            f"{'graph':<14}{'parameters':>12}{'read':>12}{'write':>12}",
        ]
        rows += [
            f"{part.name:<14}{count(part.parameters):>12}{size(part.read_bytes):>12}"
            f"{size(part.write_bytes):>12}"
            for part in self.parts
        ]
        rows += [
            "",
            f"disk         {size(self.disk_bytes)} needed, {size(self.disk_free)} free",
            f"memory       {size(self.memory_bytes)} needed, {size(self.memory_free)} free",
        ]
        return "\n".join(rows)

    def check(self, output: Path) -> None:
        """Refuse what cannot be finished.

        Raises:
            OutputError: Not enough disk.
            ExportError: Not enough memory.
        """
        if self.disk_bytes > self.disk_free:
            raise OutputError(
                f"{output} needs {size(self.disk_bytes)}, its disk has {size(self.disk_free)} "
                "free: choose a place on another disk with -o, or a narrower --precision"
            )
        if self.memory_bytes > self.memory_free:
            hint = (
                ": ask for --parity blocks" if self.parity == "full" else ": close other programs"
            )
            raise ExportError(
                f"the export needs {size(self.memory_bytes)} of memory, "
                f"{size(self.memory_free)} are free{hint}"
            )


def make_plan(
    model: OpenModel,
    parts: Mapping[str, Part],
    checkpoint: Checkpoint,
    precisions: tuple[Precision, Precision],
    options: ExportOptions,
    output: Path,
) -> ExportPlan:
    """Measure the parts, the disk and the memory.

    Args:
        model: the opened checkpoint.
        parts: its graphs' modules, without weights.
        checkpoint: where it is from.
        precisions: of the transformer, and of the text side.
        options: parity "auto" is decided by the memory.
        output: the bundle's place.
    """
    plans = tuple(
        PartPlan(p.name, p.parameters, p.source_nbytes, p.nbytes, p.largest_nbytes)
        for p in parts.values()
    )
    precision, text = (each.name for each in precisions)
    free = free_memory()
    few = max(max(p.nbytes, 2 * p.parameters) for p in _sampled(model, precisions[0]))
    lean = _BASE_BYTES + max(_COPIES * max(p.largest_bytes for p in plans), _LEAN_GATE * few)
    full = _BASE_BYTES + _FULL_GATE_BYTES * max(plan.parameters for plan in plans)
    parity = options.parity
    if parity == "auto":
        parity = "full" if full <= free // 2 else "blocks"
    spec = model.spec
    needed = sum(plan.write_bytes for plan in plans) + _GRAPH_BYTES
    usage = shutil.disk_usage(existing(output))
    sizes = ", ".join(f"{w}x{h}" for w, h in spec.geometry.sizes)
    read = spec.capture_blocks
    return ExportPlan(
        model=spec.name,
        family=spec.family.name,
        source=checkpoint.source,
        precision=precision if text == precision else f"{precision}, text side {text}",
        captures=tuple(dict.fromkeys(options.captures)),
        sizes=sizes or "dynamic",
        blocks=f"{spec.double_blocks} + {spec.single_blocks} blocks"
        + ("" if read is None else f" ({len(read)} read)"),
        parts=plans,
        parity=parity,
        disk_bytes=needed,
        # A file system without a size is none that can be written; writing will say so.
        disk_free=usage.free if usage.total else needed,
        memory_bytes=full if parity == "full" else lean,
        memory_free=free,
        revision=checkpoint.revision,
    )


def _sampled(model: OpenModel, precision: Precision) -> Iterator[Part]:
    """The parts that a comparison of a few blocks holds, one at a time."""
    for sample in model.samples_of_blocks():
        yield sample.transformer(precision)


def free_memory() -> int:
    """Memory that this process may still take: of the machine, and of its control group."""
    found = memory.free_memory()
    return int(psutil.virtual_memory().available) if found is None else found
