"""`python3 benchmarks/gpu_run.py --out DIR`: a few minutes of one GPU, told figure by figure.

For a GPU that is at hand for minutes, on a machine without a network: the figures that one would
miss most come first. Every figure is in a JSON as soon as it is known, every step is on its own (a
failure is a row with its reason), and what has to be compiled is compiled by child processes
meanwhile; a lock keeps two from timing at once. `make gpu-kit` prepares what the machine lacks;
`python -m benchmarks.gpu_results DIR` turns the JSON into the tables of docs/performance.md. In
this order:

1. what the machine is, and its two ceilings: a large copy, a large bfloat16 product
2. the probe of one block of both models, each way against float64
3. Step1X-Edit 1.0 at 512 and FLUX.2-klein-9B at 1024, random weights: eager, and as a CUDA graph
4. post-processing by CUDA kernels through CuPy, per launch, against NumPy
5. the tests that need a GPU
6. torch.compile, with capture and without (begun in the background before 3)
7. the literal method of klein-9B, 73 GB of stored rows, where the memory allows it

`--device cpu --small` tries all of it on small models without a GPU.
"""

import argparse
import contextlib
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    # Not this folder, whose modules are benchmarks.something.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.gpu_steps import (
    ROOT,
    GpuRun,
    compile_and_run,
    describe_machine,
    postprocess,
    probe_one_block,
    run_eagerly,
    run_tests,
)

CASES = ("step1x-1.0@512", "9b@1024")
SMALL_CASES = ("tiny-step1x@64", "tiny@64")
VARIANTS = ("paper mean", "no capture", "fused", "vectors", "fused blind")
COMPILED = ("no capture", "fused")
# Above: 73 GB of stored rows beside 18 GB of weights, and four compilers beside the eager model.
_LARGE_GPU_BYTES = 120e9


@dataclass
class Child:
    """A process that compiles; its figures are in a file that is named after them."""

    name: str
    log: Path
    process: subprocess.Popen[bytes]

    def end(self, wait_s: float) -> dict[str, object]:
        """Wait, end it if need be, and say how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.1, wait_s))
        ended = self.process.poll() is None
        if ended:
            self.process.kill()
        code = self.process.wait()
        if code == 0:
            return {"exit_code": 0}
        last = self.log.read_text(errors="replace")[-800:]
        return {"exit_code": code, "ended_for_time": ended, "said": last}


def _begin(run: GpuRun, case: str, variants: Sequence[str]) -> Child:
    """Begin to compile in another process."""
    name = _file_name(case, variants)
    log = Path(tempfile.gettempdir()) / f"{name}.log"
    command = [sys.executable, __file__, "--out", str(run.out), "--device", run.device]
    command += ["--budget", str(run.left), "--compile", case, ",".join(variants)]
    command += ["--small"] if run.small else []
    with log.open("w") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
    return Child(name, log, process)


def _file_name(case: str, variants: Sequence[str]) -> str:
    return "-".join(["compiled", case, *variants]).replace("@", "-").replace(" ", "-")


def run_all(run: GpuRun) -> None:
    """Take every step, in the order of what one would miss most."""
    import torch

    memory = torch.cuda.get_device_properties(0).total_memory if run.cuda else 0
    cases = SMALL_CASES if run.small else CASES
    step1x, klein = cases
    run.attempt("environment", lambda: describe_machine(run))
    with torch.no_grad():
        for case in cases:
            run.attempt(f"probe {case}", functools.partial(probe_one_block, run, case))
    pairs: list[tuple[str, Sequence[str]]] = [(klein, COMPILED)]  # around one copy of the weights
    if memory > _LARGE_GPU_BYTES:
        pairs = [(case, [name]) for case in (klein, step1x) for name in COMPILED]
    children = [_begin(run, *pair) for pair in pairs]
    for case, names in ((step1x, (*VARIANTS, "paper")), (klein, VARIANTS)):
        step = f"eager {case}"
        run.attempt(step, functools.partial(run_eagerly, run, step, case, names))
    if run.cuda:
        run.attempt("post-processing", lambda: postprocess(run))
    run.attempt("tests", lambda: run_tests(run))
    run.save("children", {each.name: each.end(run.left - 15) for each in children})
    if memory > _LARGE_GPU_BYTES or run.small:
        step = f"eager {klein}, paper"
        run.attempt(step, lambda: run_eagerly(run, step, klein, ["paper"]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Take the steps, or compile for the process that does; the exit code is 0 or 1."""
    parser = argparse.ArgumentParser(prog="gpu_run.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON files")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--budget", type=float, default=480, help="seconds for all of it")
    parser.add_argument("--small", action="store_true", help="small models, to try it out")
    parser.add_argument("--compile", nargs=2, metavar=("CASE", "VARIANTS"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")  # children take what was tuned
    try:
        import diffusers  # noqa: F401
        import torch
    except ImportError as error:
        print(
            f"error: {error}: on a machine with a network, make gpu-kit brings it", file=sys.stderr
        )
        return 1
    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            f"error: PyTorch {torch.__version__} finds no CUDA device; --device cpu --small tries "
            "all of it on a CPU",
            file=sys.stderr,
        )
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    run = GpuRun(args.out.resolve(), args.device, args.budget, args.small)
    if args.compile:
        case, variants = args.compile[0], args.compile[1].split(",")
        run.name = _file_name(case, variants)
        step = f"compiled {case}"
        run.attempt(step, lambda: compile_and_run(run, step, case, variants))
    else:
        run_all(run)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
