"""What the NumPy runtime is fed and answers, written down for C++ to read."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rism.runtime import Segmenter
from rism.runtime.bundle.graph_spec import GraphSpec
from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines.base import Engine
from rism.runtime.image.geometry import Plan
from rism.runtime.method.postprocess import localise_outputs
from rism.runtime.method.upsampling import upsample
from tests.runtime.engines.cpu import cpu_engines
from tests.runtime.spies import Spy

Arrays = Mapping[str, npt.NDArray[Any]]


def recorders(folder: Path, capture: str) -> tuple[Segmenter, dict[str, Spy]]:
    """A segmenter on the CPU, and its engines by the names of the manifest's graphs."""
    bundle = Bundle.open(folder)
    found: dict[str, Spy] = {}
    engines: dict[str, Engine] = {}
    for key, engine in cpu_engines(bundle, capture).items():
        graph = key.replace("transformer", f"transformer.{capture}")
        engines[key] = found[graph] = Spy(engine)
    return Segmenter(bundle, engines, capture=capture), found


def write_graphs(folder: Path, graphs: Mapping[str, GraphSpec], found: Mapping[str, Spy]) -> Path:
    """Store the last run of each engine that ran, as its graph takes its inputs."""
    for graph, spy in found.items():
        if not spy.fed:
            continue
        (folder / graph).mkdir(parents=True)
        inputs = graphs[graph].inputs.items()
        feeds = {name: np.asarray(spy.fed[-1][name], spec.dtype) for name, spec in inputs}
        shapes = []
        for prefix, arrays in (("in", feeds), ("out", spy.gave[-1])):
            for name, array in arrays.items():
                (folder / graph / f"{prefix}.{name}").write_bytes(array.tobytes())
                shapes.append(f"{prefix}.{name} {' '.join(map(str, array.shape))}\n")
        (folder / graph / "shapes.txt").write_text("".join(shapes))
    return folder


def write_case(
    folder: Path,
    capture: str,
    outputs: Arrays,
    plan: Plan,
    *,
    tau: float = 0.8,
    prototype: str = "equation",
) -> npt.NDArray[np.bool_]:
    """Store one expression's outputs and what the runtime makes of them; return its mask."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found = localise_outputs(capture, dict(outputs), tau=tau, prototype=prototype)
    mask = upsample(found.scores.reshape(plan.grid_hw), plan) > 0
    features = outputs.get("features", np.zeros((plan.tokens, 1), np.float32))
    blocks = len(outputs["attention_vectors"]) if "attention_vectors" in outputs else 0
    facts = {
        "capture": capture,
        "shape": (blocks, plan.tokens, features.shape[1]),
        "tau": (tau,),
        "prototype": prototype,
        "placement": (*plan.size_wh, *plan.resized_wh, *plan.crop_xyxy, *plan.grid_hw[::-1]),
        "reason": found.reason or "",
        "separability": (found.separability,),
    }
    lines = [f"{k} {v if isinstance(v, str) else ' '.join(map(str, v))}" for k, v in facts.items()]
    (folder / "case.txt").write_text("\n".join(lines) + "\n")
    wanted = {f"wanted_{k}": getattr(found, k) for k in ("scores", "coarse", "refined")}
    for name, array in {**outputs, **wanted}.items():
        (folder / f"{name}.f32").write_bytes(np.asarray(array, "<f4").tobytes())
    (folder / "mask.u8").write_bytes(mask.astype(np.uint8).tobytes())
    return mask
