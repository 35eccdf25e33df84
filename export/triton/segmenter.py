"""The model that takes images and expressions, for the server's Python backend."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from rism.export.triton.config import segmenter_config
from rism.export.triton.models import Chain, models_of
from rism.export.triton.serving_options import TritonOptions
from rism.runtime.bundle.reader import Bundle
from rism.runtime.triton_backend import SERVED

_CODE = '''"""A picture and an expression in, a mask out. The server's Python needs rism."""

from rism.runtime.triton_backend import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def write_segmenter(
    folder: Path,
    bundle: Bundle,
    chains: Sequence[Chain],
    *,
    capture: str,
    tau: float,
    options: TritonOptions,
) -> None:
    """Write the model's folder: its code, and of the bundle what is not a graph.

    Args:
        folder: to be made; its name is the model's.
        bundle: whose images and prompts it prepares.
        chains: whose models it asks.
        capture: what their transformers give.
        tau: region threshold.
        options: how the repository is served.
    """
    version = folder / "1"
    version.mkdir(parents=True)
    asked = [model for model in models_of(chains) if model.file is not None]
    served = {
        "capture": capture,
        # No run may have more rows than the models and their plans take.
        "max_batch": min([options.max_batch, *(m.rows for m in asked if m.rows is not None)]),
        "tau": tau,
        "joins": chains[0].transformer.max_batch > 0,
        "models": {model.graph: model.name for model in asked},
    }
    config = segmenter_config(folder.name, options.max_batch, options.serving)
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    (version / "model.py").write_text(_CODE, encoding="utf-8")
    (version / SERVED).write_text(json.dumps(served, indent=2) + "\n", encoding="utf-8")
    manifest = bundle.manifest
    for name in ("manifest.json", manifest.prompt.tokenizer, manifest.noise.file):
        (version / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.file(name), version / name)
