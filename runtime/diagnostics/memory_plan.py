"""What each form of a bundle takes of memory, by what stays loaded: no GPU is needed to say it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines.memory import (
    CPU_BASE_BYTES,
    GPU_BASE_BYTES,
    PartMemory,
    choose_residency,
    gib,
    least_of_each_kind,
    of_plan,
    parts_of,
)
from rism.runtime.errors import InputError

KINDS = {"resident": "all loaded", "turns": "in turn", "stages": "in stages"}
_PYTHON_BYTES = 64 * 2**20  # with this package and its libraries


@dataclass(frozen=True)
class MemoryForm:
    """One form of a model.

    Attributes:
        name: such as "bfloat16" or "engine NAME, fp8".
        on_gpu: whether the sizes are those on a GPU.
        parts: what each graph takes.
    """

    name: str
    on_gpu: bool
    parts: tuple[PartMemory, ...]

    @property
    def base(self) -> int:
        """Bytes that are taken before a graph is loaded."""
        return GPU_BASE_BYTES if self.on_gpu else CPU_BASE_BYTES + _PYTHON_BYTES

    @property
    def where(self) -> str:
        """The device, for people."""
        return "GPU" if self.on_gpu else "CPU"

    def fits(self, memory: int) -> str:
        """Say what a budget makes of it, in a few words."""
        try:
            found = choose_residency(self.parts, memory, base=self.base)
        except InputError:
            return "no"
        stages = "".join(f", {key} in stages" for key in found.stages)
        return f"{KINDS['turns'] if stages else KINDS[found.kind]}{stages}"


def bundle_forms(bundle: Bundle) -> Iterator[MemoryForm]:
    """Yield the forms of a bundle: its graphs on a GPU and on a CPU, and its engines.

    Raises:
        BundleError: a graph or a listing of layers cannot be read.
    """
    manifest = bundle.manifest
    capture, compute = manifest.default_capture, manifest.precision.compute
    on_gpu = tuple(part for part, _ in parts_of(bundle, capture, on_gpu=True))
    yield MemoryForm(f"graphs, {compute}", True, on_gpu)
    if compute != "bfloat16":
        on_cpu = tuple(part for part, _ in parts_of(bundle, capture, on_gpu=False))
        yield MemoryForm(f"graphs, {compute}", False, on_cpu)
    names = manifest.graphs_of(capture)
    for variant in manifest.engines:
        parts = tuple(
            of_plan(bundle, variant, names[part.key], part)
            if names[part.key] in variant.graphs
            else part
            for part in on_gpu
        )
        yield MemoryForm(f"engine {variant.name}", True, parts)


def memory_table(
    forms: Sequence[MemoryForm], *, gpu_memory: int | None = None, memory: int | None = None
) -> str:
    """Return the table of forms and kinds of residency, for people.

    `gpu_memory` and `memory` are the bytes that there are on a GPU, and for a process; with them
    the table says what fits.
    """
    rows = []
    for form in forms:
        there = gpu_memory if form.on_gpu else memory
        title = f"{form.name} on a {form.where}"
        rows.append(title if there is None else f"{title}, {gib(there)}: {form.fits(there)}")
        rows += [
            f"  {part.key:<24}{gib(part.weights):>12}, {gib(part.activation)} more in a run"
            for part in form.parts
        ]
        previous = 0
        for kind, (peak, moved) in least_of_each_kind(form.parts, base=form.base).items():
            if peak == previous:
                continue
            previous = peak
            fit = "" if there is None else ", fits" if peak <= there else ", does not fit"
            rows.append(
                f"  {KINDS[kind]:<24}{gib(peak):>12} needed, {gib(moved)} moved for each image{fit}"
            )
        rows.append("")
    return "\n".join(rows).rstrip()
