"""Run in a process of its own: `python -m tests.export.probe.compiled`; one JSON line a kernel.

The last line is how often each is compiled for pictures of several sizes.

The kernels for GPUs that are not here: Triton's wheel has the assembler, and asks no driver.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rism.export.probe import kernels, launch

# Compute capability to the tile that suits its tensor cores best: rows, keys, warps, stages.
TARGETS = {80: (128, 32, 4, 3), 90: (128, 128, 8, 3), 120: (256, 32, 8, 3)}
_POINTERS = {"q": "*bf16", "k": "*bf16"}
_SCALARS = {"scale": "fp32", "share": "fp32"}
_ALIGNED = ("row", "head", "batch")
_TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def compile_for(name: str, capability: int, tile: tuple[int, int, int, int]) -> dict[str, Any]:
    """Registers, stack, shared memory and what multiplies, at a head of 128 in bfloat16."""
    kernel = getattr(kernels, name)
    kernel = kernel.fn if isinstance(kernel, triton.runtime.Heuristics) else kernel
    constants = {
        "DIM": 128, "WIDTH": 128, "PRECISION": "tf32",
        "BLOCK_M": tile[0], "BLOCK_N": tile[1],
        # As launched for the models: a program for each head. Both ways to end a row of tiles.
        "heads": 1, "EVEN": capability != 120,
    }  # fmt: skip
    places = {each: (i,) for i, each in enumerate(kernel.arg_names)}
    signature = {}
    for each in places:
        tensor = each in ("weights", "values", "statistics", "sums")
        kind = (
            "constexpr" if each in constants else _SCALARS.get(each, "*fp32" if tensor else "i32")
        )
        signature[each] = _POINTERS.get(each, kind)
    aligned = [each for each in places if each in _POINTERS or each.endswith(_ALIGNED)]
    source = ASTSource(
        kernel,
        signature,
        {places[each]: value for each, value in constants.items() if each in places},
        {places[each]: [["tt.divisibility", 16]] for each in aligned},
    )
    options = {"num_warps": tile[2], "num_stages": tile[3], "enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        told = subprocess.run(
            [_TOOL, "-res-usage", file.name], check=True, capture_output=True, text=True
        )
    usage = re.search(r"REG:(\d+) STACK:(\d+).*LOCAL:(\d+)", told.stdout + told.stderr)
    assert usage is not None, told
    return {
        "kernel": name,
        "capability": capability,
        "registers": int(usage[1]),
        "spilled": int(usage[2]) + int(usage[3]),
        "shared": made.metadata.shared,
        "product": "wgmma" if "wgmma.mma_async" in made.asm["ptx"] else "mma.sync",
        "copies": "cp.async.cg" in made.asm["ptx"],
    }


class _Driver:
    """What Triton asks of a GPU before it compiles for it."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


class _CompileOnly:
    """A tuned kernel that is launched as any other, and is compiled instead: the first tile."""

    def __init__(self, tuned: Any) -> None:
        self.kernel, self.tile = tuned.fn, tuned.configs[0].all_kwargs()

    def __getitem__(self, grid: object) -> Any:
        here = {**self.tile, "grid": (1,), "warmup": True}
        return lambda *args, **given: self.kernel.run(*args, **given, **here)

    def compilations(self) -> int:
        jit = self.kernel.fn if isinstance(self.kernel, triton.runtime.Heuristics) else self.kernel
        return len(jit.device_caches[0][0])


def compilations(*sizes: int) -> dict[str, int]:
    """How often each kernel is compiled when launched for pictures of so many tokens."""
    triton.runtime.driver.set_active(_Driver())
    places = {f"_{name}": _CompileOnly(getattr(launch, f"_{name}")) for name in kernels.__all__}
    for place, kernel in places.items():
        setattr(launch, place, kernel)
    for clean in sizes:
        k = torch.zeros(1, 1, 512 + 2 * clean, 128, dtype=torch.bfloat16)
        q, weights = k[:, :, -clean:], torch.ones(1, 512)
        for statistics in (q.new_zeros(1, 1, clean, dtype=torch.float32), None):
            launch.probe_vectors(q, k, weights, statistics, heads_each=1)
    return {place: kernel.compilations() for place, kernel in places.items()}


if __name__ == "__main__":
    for capability, tile in TARGETS.items():
        for kernel in kernels.__all__:
            print(json.dumps(compile_for(kernel, capability, tile)), flush=True)
    print(json.dumps(compilations(1024, 2048, 4096)), flush=True)
    sys.exit(0)
