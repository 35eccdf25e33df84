"""One build in a process of its own, since builders crash, hang and use up memory.

`python child.py JOB.json` reads a job, writes the plan, and answers with a JSON file. Polygraphy
calls the library (TensorRT for RTX where POLYGRAPHY_USE_TENSORRT_RTX is 1, or else TensorRT) and
prints all that the library reports.
"""

import json
import sys
from pathlib import Path
from typing import Any

from polygraphy.backend import trt as builders
from polygraphy.backend.tensorrt_rtx import CreateConfigRTX
from polygraphy.exception import PolygraphyException
from polygraphy.logger import G_LOGGER
from polygraphy.mod.trt_importer import lazy_import_trt

trt = lazy_import_trt()


def main(arguments: list[str]) -> int:
    """Build what a job says.

    Args:
        arguments: the job's file.

    Returns:
        0, whether the library built the graph or refused it: the answer says which.
    """
    job = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    G_LOGGER.colors = False
    G_LOGGER.module_severity = G_LOGGER.EXTRA_VERBOSE  # the engine's layers are reported there
    built = True
    try:
        _build(job)
    except PolygraphyException:  # which is in the log, after the library's own words
        built = False
    answer = {"built": built, "version": str(trt.__version__), "peak_bytes": _peak_bytes()}
    Path(job["answer"]).write_text(json.dumps(answer), encoding="utf-8")
    return 0


def _build(job: dict[str, Any]) -> None:
    builder, network = builders.create_network(strongly_typed=True)
    parser = trt.OnnxParser(network, builders.get_trt_logger())
    # Polygraphy's loaders find weights only beside the file of the graph. This graph is in a
    # temporary folder, and its weights are in the bundle.
    if not parser.parse(Path(job["graph"]).read_bytes(), job["weights_beside"]):
        errors = [parser.get_error(at) for at in range(min(3, parser.num_errors))]
        said = [f"{error.node_name() or 'graph'}: {error.desc()}" for error in errors]
        G_LOGGER.error("; ".join(said))
        G_LOGGER.critical("The graph cannot be parsed.")
    profile = builders.Profile()
    for name, shapes in job["profile"].items():
        profile.add(name, **shapes)
    shared = {"profiles": [profile], "strip_plan": job["stripped"]}
    if job["compute_capabilities"]:
        config = CreateConfigRTX(compute_capabilities=job["compute_capabilities"], **shared)
    else:  # for the GPU of this machine, with TF32 as the library has it
        config = builders.CreateConfig(tf32=True, **shared)
    for name in ("stripped", "streamed"):
        if job[name]:
            config = builders.PostprocessConfig(config, _FLAGS[name])
    plan = builders.engine_bytes_from_network((builder, network, parser), config)
    with Path(job["plan"]).open("xb") as file:
        file.write(memoryview(plan))


def _refit_with_the_same_weights(_builder: Any, _network: Any, config: Any) -> None:
    config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)


def _stream_weights(_builder: Any, _network: Any, config: Any) -> None:
    config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)


# Those that Polygraphy has no argument for, or not for TensorRT for RTX.
_FLAGS = {"stripped": _refit_with_the_same_weights, "streamed": _stream_weights}


def _peak_bytes() -> int:
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
