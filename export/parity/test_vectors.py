"""Test vectors of a fresh bundle: what its graphs return in float32 (docs/bundle.md, self-test).

They are made by the bundle's own graphs, which the parity gate has just compared with PyTorch, on
the weights that it stores. What an engine's vectors differ by is then the engine's rounding alone.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from rism.calibration.open_graph import widen
from rism.runtime.atomic_write import link_or_copy
from rism.runtime.bundle.reader import Bundle
from rism.runtime.diagnostics.selftest import store, vectors

_TWIN = ".float32"


def store_vectors(folder: Path) -> None:
    """Make test vectors in float32 and add them to a bundle.

    Args:
        folder: a whole bundle that nobody else reads yet; its transformer must fit into memory
            in float32.

    Raises:
        BundleError: the folder is no bundle.
        ProviderError: a graph cannot run, or returns what is not finite.
        OutputError: the folder cannot be written to.
    """
    with _in_float32(folder) as twin:
        entry, data = vectors(Bundle.open(twin, verify=False))
    store(folder, {**entry, "made_by": f"{entry['made_by']} in float32"}, data)


@contextmanager
def _in_float32(folder: Path) -> Iterator[Path]:
    """Give a twin of a bundle, on the same weights, whose graphs compute in float32."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    twin = folder / _TWIN
    twin.mkdir()
    try:
        for name in manifest["files"]:
            if name.endswith(".onnx"):
                model = ir.load(folder / name)
                widen(model)
                ir.save(model, twin / name)
                manifest["files"][name]["size"] = (twin / name).stat().st_size
            else:
                link_or_copy(folder / name, twin / name)
        manifest["precision"] = {"compute": "float32", "storage": "float32"}
        for graph in manifest["graphs"].values():
            graph.pop("precision", None)
        (twin / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        yield twin
    finally:
        shutil.rmtree(twin, ignore_errors=True)
