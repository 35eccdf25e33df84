"""Real builds of single graphs, and those that go wrong in their own process: one line each."""

import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from rism.calibration.nvfp4_graph import quantise_nvfp4
from rism.export.engines.forms import Attentions, narrow_weights
from rism.export.engines.process import BuildJob, BuiltEngine, build_graph
from rism.export.engines.targets import TARGETS, gpus_here
from rism.export.errors import BuildError
from rism.runtime.bundle.engine_spec import ShapeRange
from rism.runtime.bundle.graph_spec import TensorSpec
from rism.runtime.bundle.reader import Bundle, resolve_bundle
from tests.calibration.conftest import scales_of
from tests.calibration.test_qdq import graph

SHAPES = {
    "image": (1, 3, 64, 64),
    "clean_latents": (1, 64, 384),
    "noise": (1, 64, 384),
    "prompt_embeds": (1, 48, 192),
    "prompt_weights": (1, 48),
    "positions": (64, 2),
}


def job(graph: str = "vae_encoder", **changes: object) -> BuildJob:
    """A graph of the built-in model in float32, of one size, for a GPU that need not be here."""
    bundle = Bundle.open(resolve_bundle())
    spec = bundle.manifest.graphs[graph]
    whole = BuildJob(
        graph=graph,
        target=TARGETS["tensorrt-rtx"],
        gpus=("8.9",),
        precision="fp32",
        weights="plan",
        inputs=spec.inputs,
        profile={name: ShapeRange(*[SHAPES[name]] * 3) for name in spec.inputs},
        weights_beside=bundle.file(spec.file),
        attentions=Attentions(fused=0, written_out=1),
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def build(wanted: BuildJob, folder: Path, *, timeout_s: float = 900) -> BuiltEngine:
    plan = folder / f"{wanted.graph}.plan"
    return build_graph(ir.load(wanted.weights_beside), wanted, plan, timeout_s=timeout_s)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Make a module that the child imports in the place of a library."""

    def write(module: str, body: str) -> None:
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(body))
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    return write


# TensorRT itself cannot be installed everywhere; TensorRT for RTX has the calls that a build takes.
AS_TENSORRT = """
    import tensorrt_rtx
    globals().update({k: v for k, v in vars(tensorrt_rtx).items() if not k.startswith("__")})
    __version__ = "10.14.1"
"""


@pytest.mark.parametrize("target", TARGETS)
def test_a_graph_is_built_for_each_library(
    target: str, tmp_path: Path, library: Callable[[str, str], None]
) -> None:
    if target == "tensorrt":
        library("tensorrt", AS_TENSORRT)
    built = build(job(target=TARGETS[target]), tmp_path)
    assert built.version.startswith("10.14" if target == "tensorrt" else "1.")
    assert built.plan_bytes == (tmp_path / "vae_encoder.plan").stat().st_size > 1e6
    assert 5e6 < (built.activation_bytes or 0) < 5e7 and built.peak_bytes > 1e8
    assert {check.question: check.answer for check in built.checks} == {
        "attention fused": "not in this form", "precision used": "yes"
    }  # fmt: skip
    assert [file.name for file in tmp_path.glob("vae_encoder.*")] == ["vae_encoder.plan"]


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("activations", [False, True])
def test_products_of_nvfp4(kind: str, activations: bool, tmp_path: Path) -> None:
    model, (width, rows) = graph(kind, width=512), (512, 10)
    scales = scales_of(model) if activations else None
    layers = quantise_nvfp4(model, tmp_path / "e2m1.weights", scales)
    precision = "nvfp4" if activations else {"float16": "fp16", "bfloat16": "bf16"}[kind]
    shape = ShapeRange((1, 7, width), (1, 7, width), (1, 64, width))
    wanted = job(
        gpus=("12.0",),
        precision=precision,
        weights="streamed",
        inputs={"x": TensorSpec("x", kind, (1, None, width))},
        profile={"x": shape},
        weights_beside=tmp_path / "graph.onnx",
        attentions=Attentions(fused=0, written_out=0),
        quantised=layers if activations else 0,
        narrow=narrow_weights(model),
    )
    built = build_graph(model, wanted, tmp_path / "vae_encoder.plan", timeout_s=900)
    answers = {check.question: check for check in built.checks}
    found = answers["weights in NVFP4"]
    assert (found.answer, found.detail) == (
        "yes",
        f"{2 * width * rows} numbers of {2 * width * rows}",
    )
    assert answers["precision used"].answer == "yes"
    types = {t.dtype for layer in built.layers for t in layer.inputs if layer.type == "gemm"}
    assert ("FP4E2M1" in types) == activations


def test_a_crashed_builder_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    # Narrow attentions in float32, left to the library's kernels, are a segmentation fault in its
    # version 1.7; a later one may refuse them instead.
    with pytest.raises(BuildError) as caught:
        build(job("transformer.vectors"), tmp_path)
    message = str(caught.value)
    said = ["building transformer.vectors: tensorrt_rtx", "try another --precision"]
    if "crashed" in message:
        said += ["SIGSEGV", "the log ends: [V] ", " GB"]
    assert all(words in message for words in said) and "\n" not in message


def test_a_killed_builder_is_most_likely_out_of_memory(
    tmp_path: Path, library: Callable[[str, str], None]
) -> None:
    last = "print('last words', file=sys.stderr, flush=True)"
    library("tensorrt_rtx", f"import os, sys; {last}\nos.kill(os.getpid(), 9)")
    with pytest.raises(BuildError, match=r"crashed \(SIGKILL\).*last words.*--bind-weights"):
        build(job(), tmp_path)


def test_a_builder_that_hangs_is_stopped(
    tmp_path: Path, library: Callable[[str, str], None]
) -> None:
    library("tensorrt_rtx", "import time; time.sleep(600)")
    with pytest.raises(BuildError, match=r"took longer than 1 s and was stopped.*--timeout"):
        build(job(), tmp_path, timeout_s=1)


def test_a_refusal_of_the_parser_names_the_node(tmp_path: Path) -> None:
    wanted = job()
    model = ir.load(wanted.weights_beside)
    node = model.graph[3]
    node.op_type = "Unheard"
    with pytest.raises(BuildError) as caught:
        build_graph(model, wanted, tmp_path / "vae_encoder.plan")
    assert "building vae_encoder: tensorrt_rtx 1." in str(caught.value)
    assert f"refused it ({node.name}: " in str(caught.value)


def test_stripping_without_a_gpu_names_the_way_around(tmp_path: Path) -> None:
    """Where there is a GPU it is built: then there is nothing to name."""
    if gpus_here():
        pytest.skip("this machine has a GPU")
    with pytest.raises(BuildError, match=r"on a GPU.*--bind-weights"):
        build(job(weights="stripped"), tmp_path)
