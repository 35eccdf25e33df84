"""`PYTHON benchmarks/fp8/modelopt.py GRAPH FEEDS OUTPUT [NODE ...]`: modelopt's FP8, measured.

Runs alone in an environment that has nvidia-modelopt[onnx], which brings packages that
exclude rism's own. Prints seconds, peak memory and version as JSON in the last line.
"""

import json
import resource
import sys
import time
from importlib.metadata import version
from typing import Any

import numpy as np


def main() -> None:
    """Quantise one graph; nodes that are named stay as they are."""
    from modelopt.onnx.quantization import quantize

    graph, feeds, output, *excluded = sys.argv[1:]
    with np.load(feeds, allow_pickle=False) as stored:
        data: dict[str, Any] = {name: stored[name] for name in stored.files if name != "count"}
        count = int(stored["count"])
    shapes = [
        f"{name}:{'x'.join(str(size) for size in (len(array) // count, *array.shape[1:]))}"
        for name, array in data.items()
    ]
    start = time.perf_counter()
    quantize(
        graph,
        quantize_mode="fp8",
        calibration_data=data,
        calibration_method="max",
        calibration_shapes=",".join(shapes),
        calibration_eps=["cpu"],
        op_types_to_quantize=["MatMul", "Gemm"],
        nodes_to_exclude=excluded or None,
        high_precision_dtype="fp32",
        output_path=output,
        log_level="ERROR",
    )
    found = {
        "seconds": round(time.perf_counter() - start, 1),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "version": version("nvidia-modelopt"),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
