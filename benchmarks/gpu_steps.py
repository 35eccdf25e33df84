"""The steps of `benchmarks.gpu_run`: each is given the run and returns figures for its JSON."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.errors import reason
from benchmarks.harness.measure import Repeats, Timing, environment, forget, repeat, repeat_on_gpu
from rism.runtime.atomic_write import write_atomically

if TYPE_CHECKING:
    from benchmarks.capture.models import RandomModel
    from benchmarks.capture.pytorch import Figure
    from benchmarks.capture.variants import Variant

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = "rism-gpu-run-1"
Facts = dict[str, object]
Keep = Callable[[], None]
"""Writes what is known so far: what comes next may end the process."""
_GRAPHED = ("no capture", "fused", "vectors")
_TESTS_S = 110


@dataclass
class GpuRun:
    """One process's share: where its figures go, and how much time is left."""

    out: Path
    device: str
    budget: float
    small: bool
    name: str = "found"
    start: float = field(default_factory=time.monotonic)
    steps: dict[str, object] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        """Whether this is no rehearsal."""
        return self.device == "cuda"

    @property
    def left(self) -> float:
        """Seconds."""
        return self.budget - (time.monotonic() - self.start)

    def runs(self, wanted: int) -> int:
        """How often to time something: a rehearsal has no time to be exact."""
        return 2 if self.small else wanted

    def save(self, step: str, found: object) -> None:
        """Write what a step has found so far; the file is whole at any moment."""
        at = round(time.monotonic() - self.start, 1)
        self.steps[step] = {"at_s": at, "found": found}
        whole = {"schema": SCHEMA, "small": self.small, "device": self.device, "steps": self.steps}
        text = json.dumps(whole, indent=1, default=str)
        write_atomically(self.out / f"{self.name}.json", text.encode())
        print(f"[{at:6.1f} s] {step}: {json.dumps(found, default=str)[-200:]}", flush=True)

    def attempt(self, step: str, do: Callable[[], object]) -> None:
        """Take one step; whatever it raises is its result."""
        if self.left < 5:
            self.save(step, {"failed": "no time was left for it"})
            return
        try:
            self.save(step, do())
        except Exception as error:  # the next figure may be had all the same
            before = self.steps.get(step)
            kept = before["found"] if isinstance(before, dict) else {}
            self.save(step, {**(kept if isinstance(kept, dict) else {}), **reason(error)})
        forget()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else times anything meanwhile."""
        with (self.out / "timing.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def clock(run: GpuRun, work: Callable[[], object], runs: int = 10) -> Timing:
    """Time some work while no other process does."""
    work()  # compiles, tunes
    with run.alone():
        return (repeat_on_gpu if run.cuda else repeat)(work, runs=run.runs(runs), warm_up=2)


def describe_machine(run: GpuRun) -> object:
    """Versions, the GPU, and the two rates that everything is held against."""
    import torch

    packages = ("torch", "triton", "diffusers", "transformers", "cupy-cuda13x")
    found = environment(packages=packages, gpu=run.cuda)
    found["date"] = time.strftime("%Y-%m-%d", time.gmtime())
    found["commit"] = _commit()
    dtype = torch.bfloat16 if run.cuda else torch.float32
    size, side = (2**31, 8192) if run.cuda else (2**20, 128)
    source = torch.empty(size, dtype=torch.uint8, device=run.device)
    target = torch.empty_like(source)
    found["copy_bytes_per_s"] = 2 * size / clock(run, lambda: target.copy_(source)).median
    a, b = (torch.randn(side, side, device=run.device, dtype=dtype) for _ in range(2))
    found["product_flop_per_s"] = 2 * side**3 / clock(run, lambda: a @ b).median
    return found


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return "not known"


def probe_one_block(run: GpuRun, case: str) -> object:
    """Time every way of probing one block; its errors against float64, its repeatability."""
    from benchmarks.capture.block import compare_ways

    ways: dict[str, object] = {}
    found: dict[str, object] = {"ways": ways}
    clocked = functools.partial(clock, run, runs=30)
    for way, timing, facts in compare_ways(case, run.device, clocked):
        ways[way] = facts if timing is None else {**timing.to_json_dict(), **facts}
        run.save(f"probe {case}", found)
    return found | ({"tiles": _tiles(), "backends": _backends(case)} if run.cuda else {})


def _backends(case: str) -> dict[str, str]:
    """Return which of PyTorch's attentions serves the main queries and the exported probe."""
    import torch

    from benchmarks.capture.block import ProbeBlock
    from benchmarks.rooflines.probe_bounds import SHAPES

    block = ProbeBlock(SHAPES[case], "cuda")
    narrow = block.precision.probe
    q, k = block.clean.to(narrow), block.k.to(narrow)
    shared = torch.zeros_like(k[:, :1]).expand_as(k)
    arrays = {
        "main": (block.q, block.k, block.v),
        "probe": (q, k, shared),
        "probe, values of their own memory": (q, k, shared.contiguous()),
    }
    return {
        name: torch.nn.attention.SDPBackend(torch._fused_sdp_choice(*each)).name
        for name, each in arrays.items()
    }


def _tiles() -> dict[str, str]:
    from rism.export.probe import launch

    kernels = (launch._prompt_masses, launch._propagation, launch._row_statistics)
    return {each.base_fn.__name__: str(getattr(each, "best_config", None)) for each in kernels}


def run_eagerly(run: GpuRun, step: str, case: str, variants: Sequence[str]) -> object:
    """Time whole passes as PyTorch runs Python, and some replayed as a CUDA graph."""
    from benchmarks.capture.pytorch import profile, replay, run_eager

    wanted: list[Any] = []

    def measure(model: RandomModel, variant: Variant, row: Facts, keep: Keep) -> None:
        name = variant.name
        runs = Repeats(run.runs(5 if name == "paper" else 10), warm_up=2, alone=run.alone)
        figure = run_eager(model, variant, runs)
        row |= _facts(model, figure)
        outputs = list(figure.outputs.values())
        if name == "paper mean":
            wanted.extend(outputs)
        elif wanted and name != "no capture":
            row["largest_difference"] = [
                float(abs(a - b).max() / abs(b).max()) for a, b in zip(outputs, wanted, strict=True)
            ]
        keep()
        module = model.module(variant)
        if run.cuda and name in _GRAPHED:
            with run.alone():
                row["cuda_graph"] = replay(module, model, runs=10).to_json_dict()
        if name == "fused":
            row["kernels_s"] = profile(module, model)

    return _each_variant(run, step, case, variants, measure)


def compile_and_run(run: GpuRun, step: str, case: str, variants: Sequence[str]) -> object:
    """Time passes through torch.compile."""
    from benchmarks.capture.pytorch import run_compiled

    backend = "inductor" if run.cuda else "aot_eager"  # a dry run need not wait for a compiler

    def measure(model: RandomModel, variant: Variant, row: Facts, _keep: Keep) -> None:
        runs = Repeats(run.runs(10), warm_up=2, alone=run.alone)
        figure = run_compiled(model, variant, runs, backend=backend, graph=run.cuda)
        row |= _facts(model, figure)

    return _each_variant(run, step, case, variants, measure)


def _each_variant(
    run: GpuRun,
    step: str,
    case: str,
    variants: Sequence[str],
    measure: Callable[[RandomModel, Variant, Facts, Keep], None],
) -> object:
    """Make a model and measure its variants; what is in a row when one fails is kept."""
    from benchmarks.capture.models import CaptureCase, RandomModel
    from benchmarks.capture.variants import VARIANTS
    from rism.export.precision import PRECISIONS

    gc.freeze()  # what the packages hold need not be looked through after every variant
    start = time.monotonic()
    precision = PRECISIONS["bf16" if run.cuda else "fp32"]
    model = RandomModel(CaptureCase.parse(case), precision, run.device)
    if run.cuda:
        import torch

        torch.cuda.synchronize()
    made_s = round(time.monotonic() - start, 1)
    found: Facts = {"made_s": made_s, "weights_bytes": model.nbytes}
    for name in variants:
        row: Facts = {}
        found[name] = row
        try:
            measure(model, VARIANTS[name], row, functools.partial(run.save, step, found))
        except Exception as error:  # the other variants may run
            row |= reason(error)
        forget()
        run.save(step, found)
    return found


def _facts(model: RandomModel, figure: Figure) -> Facts:
    facts = {**figure.timing.to_json_dict(), **figure.notes}
    if figure.memory_bytes is not None:
        facts["peak_over_weights_bytes"] = figure.memory_bytes - model.nbytes
    return facts


def postprocess(run: GpuRun) -> object:
    """Time the kernels of post-processing, each launch, and what they replace."""
    from benchmarks.scenarios import postprocess_gpu
    from rism.runtime.engines.cuda_device import open_device

    device = open_device(0)
    found: dict[str, object] = {"cuda_graph": _replays(device)}
    for case in postprocess_gpu.CASES:
        with run.alone():
            ways = postprocess_gpu.compare_ways(case, device=device, runs=20)
        found[case.name] = {
            name: each.to_json_dict() if isinstance(each, Timing) else each
            for name, each in ways.items()
        }
        run.save("post-processing", found)
    return found


def _replays(device: Any) -> bool:
    """Whether CuPy's CUDA graphs replay what they captured, as engines of TensorRT ask of them."""
    with device.lock, device.current():
        x = device.empty((4096,), "float32")
        x.fill(1)
        again = device.capture(lambda: x.__iadd__(1))
        again()
        again()
    return bool((device.download(x) == 3).all())


def run_tests(run: GpuRun) -> object:
    """Run the tests that need a GPU; without one, see that they are found."""
    marked = [
        str(file.relative_to(ROOT))
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.gpu" in file.read_text()
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *marked]
    command += ["-x", "--collect-only"] if not run.cuda else []
    limit = max(20, min(_TESTS_S, run.left - 20))
    with tempfile.TemporaryFile("w+") as said:
        try:
            code: int | None = subprocess.run(
                command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, timeout=limit
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
        said.seek(0)
        return {"exit_code": code, "limit_s": limit, "said": said.read()[-3000:]}
