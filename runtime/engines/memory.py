"""What a bundle's graphs take of memory, and which of them stay loaded within a budget.

On the CPU a budget is of the whole process, on a GPU of what the graphs take there. Sizes of
weights are read off the graphs; what flows between them is an upper estimate from the manifest.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rism.runtime.bundle.engine_spec import EngineVariant
from rism.runtime.bundle.graph_spec import MODULATION
from rism.runtime.bundle.manifest import Manifest
from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines import nvidia_driver
from rism.runtime.engines.onnx_graph import OnnxGraph, OnnxWeight, read_graph
from rism.runtime.engines.stages import Size, largest_block
from rism.runtime.errors import InputError, one_line

AUTO, TURNS = "auto", "turns"
_UNITS = {"": 0, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", re.ASCII | re.IGNORECASE)
# Of "auto" some is left to others, and to what an estimate misses.
_SHARE_OF_FREE = 0.9
# Libraries that are loaded with the first graph, an image and its mask.
CPU_BASE_BYTES = 96 * 2**20
# CUDA's context and its libraries' kernels.
GPU_BASE_BYTES = 512 * 2**20


def parse_memory(text: str | int) -> int | None:
    """Read a budget: "8GiB", "8 GB", "8g", a number of bytes, or "auto" (None).

    Raises:
        InputError: none of these, or 0.
    """
    if text == AUTO:
        return None
    given = text
    if isinstance(text, str):
        match = _SIZE.fullmatch(text)
        if match is None or not match[2] or (match[3] and not match[2]):
            raise InputError(
                f"memory is '{one_line(text, limit=40)}', expected a size such as 8GiB, 8GB or 8g, "
                "or auto"
            )
        unit = _UNITS[match[2].lower()]
        if match[3]:
            unit = 2 ** (10 * ("kmgt".index(match[2].lower()) + 1))
        given = int(float(match[1]) * unit)
    if not isinstance(given, int) or isinstance(given, bool) or given <= 0:
        raise InputError(f"memory is {one_line(text, limit=40)}, expected more than 0, or auto")
    return given


def free_memory() -> int | None:
    """Return the bytes that this process may still take, of the machine and its control group.

    None where the system does not say.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail"))
    except (OSError, ValueError, StopIteration):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        return min(free, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no control group, or "max": no limit
        return free


def _taken() -> int:
    """Return the bytes that this process has in memory."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except (OSError, ValueError, IndexError):
        return 2**27


@dataclass(frozen=True)
class PartMemory:
    """What one graph takes where it runs, in bytes.

    Attributes:
        key: what its engine is called.
        weights: its weights.
        activation: what flows between them in a run with one expression.
        block: the largest piece that it can be cut into; None where it cannot be cut.
    """

    key: str
    weights: int
    activation: int
    block: int | None


@dataclass(frozen=True)
class Residency:
    """What a budget makes of a bundle.

    Attributes:
        kind: "resident", all stay; "turns", each is loaded when it is needed, in the place of
            others; "stages", some are also run a few blocks at a time.
        peak: bytes at most.
        moved: bytes of weights that are loaded for each image once all are known.
        stages: for graphs in stages: bytes of a stage at most, and whether the next one is loaded
            while it runs.
        max_batch: expressions of a run.
    """

    kind: str
    peak: int
    moved: int
    stages: Mapping[str, tuple[int, bool]]
    max_batch: int


def held_on_cpu(weight: OnnxWeight) -> int:
    """Return the bytes of a weight in a session of onnxruntime on the CPU; measured, rounded up.

    Products of float32 keep one packed copy. What is stored in 16 bits is widened, but for tables.
    Of what is dequantised the library keeps three copies, of the bytes of `MatMulNBits` half a copy
    more.
    """
    if weight.quantised:
        return 3 * weight.nbytes
    if weight.is_half and not weight.looked_up:
        return int(2.2 * weight.nbytes)
    return int((1.5 if weight.is_bytes else 1.1) * weight.nbytes)


def held_on_gpu(weight: OnnxWeight) -> int:
    """Return the bytes of a weight in a session of onnxruntime on a GPU."""
    return weight.nbytes


def _held_wide_on_gpu(weight: OnnxWeight) -> int:
    """Likewise, of a graph in float32: it widens what is stored in 16 bits."""
    return (2 if weight.is_half and not weight.looked_up else 1) * weight.nbytes


def held_by(manifest: Manifest, *, on_gpu: bool) -> Size:
    """Return what says how many bytes a weight of a bundle takes on a device."""
    if not on_gpu:
        return held_on_cpu
    return _held_wide_on_gpu if manifest.precision.compute == "float32" else held_on_gpu


def parts_of(
    bundle: Bundle, capture: str, *, on_gpu: bool
) -> Iterator[tuple[PartMemory, OnnxGraph]]:
    """Yield what each graph that a capture mode needs takes, and the graph itself.

    Raises:
        BundleError: a graph cannot be read.
    """
    manifest = bundle.manifest
    size = held_by(manifest, on_gpu=on_gpu)
    for key, name in manifest.graphs_of(capture).items():
        spec = manifest.graphs[name]
        file = spec.file if on_gpu or spec.cpu is None else spec.cpu
        graph = read_graph(bundle.file(file), manifest.files)
        mapped = key == MODULATION and not on_gpu  # its weights are cast one by one
        weights = sum((held_on_gpu if mapped else size)(each) for each in graph.weights.values())
        # Convolutions have other layouts inside than at a cut, and round otherwise.
        cuttable = not key.startswith("vae_encoder")
        block = largest_block(graph, size) if cuttable else None
        kind, _, sides = key.partition("@")
        width, _, height = sides.partition("x")
        sizes = RunSizes.of(manifest, size_wh=(int(width), int(height)) if sides else None)
        yield PartMemory(key, weights, sizes.activation(kind, on_gpu=on_gpu), block), graph


def of_plan(bundle: Bundle, variant: EngineVariant, graph: str, part: PartMemory) -> PartMemory:
    """Return what a plan takes of a GPU, where its graph would take `part`.

    Its builder knows what its runs take. Streamed weights need no more room than a block.
    """
    plan, files = variant.graphs[graph], bundle.manifest.files
    weights = files[plan.file].size
    if plan.refit is not None:
        weights += part.weights
    elif plan.weights is not None:
        bound = json.loads(bundle.read(plan.weights)).values()
        weights += sum(int(each["length"]) for each in bound)
    activation = part.activation
    if plan.layers is not None:
        told = json.loads(bundle.read(plan.layers)).get("activation_bytes")
        activation = told if isinstance(told, int) else activation
    return replace(
        part, weights=weights, activation=activation, block=part.block if variant.streamed else None
    )


@dataclass(frozen=True)
class RunSizes:
    """Sizes that decide what a run holds beside the weights; at most, of one expression.

    Attributes:
        tokens: N_v.
        token_px: side of a token in pixels.
        prompt: N_p.
        dropped: tokens that only the text encoder sees.
        width: D of the transformer.
        text_width: of the prompt's embeddings.
        patches: of the vision encoder; 0 without one.
        nbytes: of a number.
    """

    tokens: int
    token_px: int
    prompt: int
    dropped: int
    width: int
    text_width: int
    patches: int
    nbytes: int = 4

    @classmethod
    def of(cls, manifest: Manifest, *, size_wh: tuple[int, int] | None = None) -> "RunSizes":
        """Return those of a bundle, or of one of its fixed sizes."""
        rules, prompt = manifest.geometry, manifest.prompt
        tokens = manifest.noise.shape[0]
        if size_wh is not None:
            tokens = (size_wh[0] // rules.token_px) * (size_wh[1] // rules.token_px)
        width = manifest.graphs["text_encoder"].outputs["prompt_embeds"].shape[-1]
        vision = prompt.vision
        return cls(
            tokens=tokens,
            token_px=rules.token_px,
            prompt=prompt.max_length,
            dropped=prompt.drop,
            width=manifest.method.feature_dim,
            text_width=width if isinstance(width, int) else 4096,
            patches=0 if vision is None else vision.max_pixels // vision.patch_px**2,
            nbytes=2 if manifest.precision.compute == "bfloat16" else 4,
        )

    def activation(self, graph: str, *, on_gpu: bool) -> int:
        """Return an upper estimate of what a run of a graph holds beside its weights, in bytes."""
        if graph == "transformer":
            # Of a block: the stream, queries, keys and values, and an MLP four times as wide.
            count = self.prompt + 2 * self.tokens
            inner = 16 * count * self.width * self.nbytes
            # On a CPU attention stores the scores of each head, of 128 channels as a rule.
            return inner if on_gpu else inner + 5 * (self.width // 128 + 1) * count**2
        if graph == "vae_encoder":
            # The first level has the image's size and about 128 channels; five such maps.
            return 5 * 128 * self.nbytes * self.tokens * self.token_px**2
        if graph == "vision_encoder":
            return 192 * self.patches**2 + 2**16 * self.patches
        return 20 * (self.prompt + self.dropped) * self.text_width * self.nbytes


def choose_residency(
    parts: Sequence[PartMemory], budget: int, *, base: int = 0, max_batch: int = 1
) -> Residency:
    """Choose what stays in memory, so that it never exceeds a budget; `base` bytes are taken.

    Raises:
        InputError: too little for one block of a graph.
    """
    every = sum(part.weights for part in parts)
    for batch in dict.fromkeys((max_batch, 1)):
        peak = base + every + batch * max(part.activation for part in parts)
        if peak <= budget:
            return Residency("resident", peak, 0, {}, batch)
    stages: dict[str, tuple[int, bool]] = {}
    peak = 0
    for part in parts:
        room = budget - base - part.activation
        if part.weights <= room:
            peak = max(peak, base + part.activation + part.weights)
            continue
        least = part.weights if part.block is None else part.block
        if least > room:
            raise InputError(
                f"memory of {gib(budget)} is too little: {part.key} needs "
                f"{gib(base + part.activation + least)} at least, "
                f"{'whole' if part.block is None else 'a block at a time'}: give that, or export "
                "in fewer bits"
            )
        ahead = 2 * least <= room
        stages[part.key] = (room // 2 if ahead else room), ahead
        peak = budget
    return Residency("stages" if stages else "turns", peak, every, stages, 1)


def least_of_each_kind(parts: Sequence[PartMemory], *, base: int = 0) -> dict[str, tuple[int, int]]:
    """Return the least peak, and the bytes moved for each image, by kind of residency."""
    every = sum(part.weights for part in parts)
    least = [part.weights if part.block is None else part.block for part in parts]
    runs = zip(parts, least, strict=True)
    return {
        "resident": (base + every + max(part.activation for part in parts), 0),
        "turns": (base + max(part.weights + part.activation for part in parts), every),
        "stages": (base + max(part.activation + block for part, block in runs), every),
    }


def gib(nbytes: int) -> str:
    """Write bytes as messages do."""
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.0f} MiB"


def expected_budget(memory: str | int, *, gpu: int | None) -> tuple[int, int]:
    """Return a budget in bytes, 0 for "turns", and how much is taken before a graph is loaded.

    `gpu` is a GPU's number, None for the CPU, whose budget is of the whole process.

    Raises:
        InputError: it cannot be read, or there is less.
        ProviderError: the GPU does not say what is free.
    """
    taken = _taken() if gpu is None else 0
    base = taken + CPU_BASE_BYTES if gpu is None else GPU_BASE_BYTES
    if memory == TURNS:
        return 0, base
    asked = parse_memory(memory)
    if gpu is not None:
        free, where = nvidia_driver.free_memory(gpu), f"GPU {gpu}"
    else:
        where = "this process"
        found = free_memory()
        if found is None and asked is None:
            raise InputError(
                "memory is auto, and this system does not say what is free, expected a size such "
                "as 8GiB"
            )
        free = asked or 0 if found is None else found
    if asked is not None and asked > taken + free:
        raise InputError(
            f"memory is {one_line(memory, limit=40)}, {where} can have {gib(taken + free)} now: "
            "give less, close other programs, or use auto"
        )
    return (int(taken + _SHARE_OF_FREE * free) if asked is None else asked), base
