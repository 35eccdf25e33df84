"""One build, in a process of its own: builders crash, hang and eat memory.

`python -m rism.export.engines.child JOB.json` reads a job, writes the plan, and answers with a
JSON file beside it. Importing TensorRT happens here and nowhere else in the exporter. The order
of calls is the maker's: builder, strongly typed network, parser, configuration, profile, build.
"""

from __future__ import annotations

import json
import re
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["main"]

_LISTED = ", LayerType: "
_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")


def main(arguments: list[str]) -> int:
    """Build what a job says.

    Args:
        arguments: the job's file.

    Returns:
        0, or 1 where the library refused; the answer says why.
    """
    file = Path(arguments[0])
    job = json.loads(file.read_text(encoding="utf-8"))
    started = time.perf_counter()
    trt = import_module(job["module"])
    logger = _logger(trt, Path(job["log"]), Path(job["listing"]))
    try:
        answer = _build(trt, job, logger)
    finally:
        logger.close()
    answer |= {
        "version": str(trt.__version__),
        "seconds": time.perf_counter() - started,
        "peak_bytes": _peak_bytes(),
        "activation_bytes": logger.activation_bytes,
    }
    Path(job["answer"]).write_text(json.dumps(answer), encoding="utf-8")
    return 0 if answer["built"] else 1


def _build(trt: Any, job: dict[str, Any], logger: Any) -> dict[str, Any]:
    builder = trt.Builder(logger)
    network = builder.create_network(_typed(trt))
    parser = trt.OnnxParser(network, logger)
    # The graph as bytes, and a path in the bundle: weights are mapped from there.
    if not parser.parse(Path(job["graph"]).read_bytes(), job["weights_beside"]):
        found = [parser.get_error(at) for at in range(parser.num_errors)]
        reasons = [f"{each.node_name() or 'graph'}: {each.desc()}" for each in found]
        return {"built": False, "stage": "parser", "reason": "; ".join(reasons[:3])}
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for flag in job["flags"]:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    _choose_gpus(trt, config, job["compute_capabilities"])
    profile = builder.create_optimization_profile()
    for name, shape in job["profile"].items():
        profile.set_shape(name, *(tuple(shape[key]) for key in ("min", "opt", "max")))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return {"built": False, "stage": "builder", "reason": logger.last_error}
    with Path(job["plan"]).open("xb") as file:
        file.write(memoryview(plan))
    return {"built": True}


def _typed(trt: Any) -> int:
    """Flags of a strongly typed network; TensorRT 11 knows no other and may lack the name."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _choose_gpus(trt: Any, config: Any, capabilities: list[str]) -> None:
    if not capabilities:
        return  # the GPU of this machine
    config.num_compute_capabilities = len(capabilities)
    for at, capability in enumerate(capabilities):
        name = "SM" + capability.replace(".", "")
        config.set_compute_capability(getattr(trt.ComputeCapability, name), at)


def _logger(trt: Any, log: Path, listing: Path) -> Any:
    """Split the library's messages: layers to one file, what people read to another."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = "no reason was given"
            self.activation_bytes: int | None = None
            self._log = log.open("w", encoding="utf-8", buffering=1)
            self._listing = listing.open("w", encoding="utf-8")

        def log(self, severity: Any, message: str) -> None:
            # Layers by the hundred thousand lines of a verbose log: only these are kept.
            if severity == trt.ILogger.Severity.VERBOSE:
                if _LISTED in message:
                    self._listing.write(message + "\n")
                return
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last_error = message
            if (found := _ACTIVATIONS.search(message)) is not None:
                self.activation_bytes = int(found[1])
            name = str(severity).rpartition(".")[2]
            self._log.write(f"{name}: {message}\n")

        def close(self) -> None:
            self._log.close()
            self._listing.close()

    return Logger()


def _peak_bytes() -> int:
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
