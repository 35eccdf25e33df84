"""`rism plan`: what fits, from a bundle's files and from a checkpoint's headers."""

import json
import re
from pathlib import Path

import pytest

from rism.runtime.bundle.reader import Bundle
from rism.runtime.diagnostics.memory_plan import bundle_forms
from rism.runtime.engines.memory import gib
from tests.cli.conftest import invoke
from tests.conftest import seal
from tests.runtime.engines.deep_bundle import deepen


def test_a_bundle(tiny_bundle: Path) -> None:
    stored = deepen(tiny_bundle, blocks=8, width=2048)
    shown = invoke("plan", tiny_bundle, "--gpu-memory", "600MiB", "--memory", "1GiB").stdout
    gpu, cpu = shown.split("\n\n")
    assert gpu.startswith("graphs, float32 on a GPU, 600 MiB: in turn, transformer in stages\n")
    assert cpu.startswith("graphs, float32 on a CPU, 1.00 GiB: all loaded\n")
    assert re.search(rf"transformer +{gib(stored)},", gpu)
    lines = {line.split("  ")[1]: line for line in gpu.splitlines()[1:]}
    assert lines["all loaded"].endswith("0 MiB moved for each image, does not fit")
    assert lines["in stages"].endswith(f"{gib(stored)} moved for each image, fits")
    assert invoke("plan", tiny_bundle, "--gpu-memory", "540MiB").stdout.startswith(
        "graphs, float32 on a GPU, 540 MiB: no\n"
    )
    assert "memory       graphs, float32 on a CPU: all loaded, free are" in (
        invoke("doctor", tiny_bundle).stdout
    )


def test_an_engine_says_what_its_runs_take(tiny_bundle: Path) -> None:
    plan, layers = "engines/x/transformer.vectors.plan", "engines/x/layers.json"
    inputs = Bundle.open(tiny_bundle, verify=False).manifest.graphs["transformer.vectors"].inputs
    shapes = {
        name: {
            end: [size if isinstance(size, int) else free for size in tensor.shape]
            for end, free in (("min", 1), ("opt", 4), ("max", 300))
        }
        for name, tensor in inputs.items()
    }
    engine = {
        "name": "x", "target": "tensorrt-rtx", "version": "1.7.1", "platform": "linux-x86_64",
        "compute_capabilities": ["8.9"], "precision": "fp16", "stripped": False,
        "graphs": {"transformer.vectors": {"file": plan, "layers": layers, "shapes": shapes}},
    }  # fmt: skip
    (tiny_bundle / "engines/x").mkdir(parents=True)
    (tiny_bundle / plan).write_bytes(bytes(3 * 2**20))
    (tiny_bundle / layers).write_text(json.dumps({"activation_bytes": 7 * 2**20}))
    seal(tiny_bundle, lambda manifest: manifest.update(engines=[engine]))
    form = [*bundle_forms(Bundle.open(tiny_bundle))][-1]
    assert form.name == "engine x"
    part = next(part for part in form.parts if part.key == "transformer")
    assert (part.weights, part.activation, part.block) == (3 * 2**20, 7 * 2**20, None)


def test_what_it_refuses(tiny_bundle: Path) -> None:
    assert "expected more than 0" in invoke("plan", tiny_bundle, "--memory", "0GB", code=2).stderr
    error = invoke("plan", tiny_bundle, "--gpu-memory", "auto", code=2).stderr
    assert "--gpu-memory auto is for rism run, expected a size" in error


@pytest.mark.slow
def test_a_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.export.families.step1x.small_model import make_step1x

    folder = make_step1x(tmp_path / "model", "1.0")
    shown = invoke("plan", folder, "--gpu-memory", "8GiB").stdout
    heads = [line for line in shown.splitlines() if line and not line.startswith(" ")]
    assert [head.split()[0] for head in heads] == ["fp32", "bf16", "fp16", "int8", "int4"]
    assert all(head.endswith("on a GPU, 8.00 GiB: all loaded") for head in heads)
    assert shown.count("modulation") == len(heads)
