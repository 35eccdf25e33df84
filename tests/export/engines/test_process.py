"""A build that goes wrong in its own process is one line here."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from rism.export.engines.errors import BuildError
from rism.export.engines.process import Job, run_job
from rism.export.engines.targets import gpus_here
from rism.runtime.bundle.engine_spec import ShapeRange

TINY = Path(__file__).parents[3] / "runtime" / "builtin" / "mini"


def job(folder: Path, **changes: object) -> Job:
    side = ShapeRange((1, 3, 64, 64), (1, 3, 64, 64), (1, 3, 64, 64))
    values: dict[str, object] = {
        "name": "vae_encoder",
        "module": "tensorrt_rtx",
        "graph": TINY / "vae_encoder.onnx",
        "weights_beside": TINY / "vae_encoder.onnx",
        "flags": (),
        "compute_capabilities": ("8.9",),
        "profile": {"image": side},
        "plan": folder / "vae_encoder.plan",
    }
    return Job(**(values | changes))  # type: ignore[arg-type]


def library(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> str:
    """A module that stands for a library which behaves badly."""
    (folder / "broken_library.py").write_text(textwrap.dedent(body))
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    return "broken_library"


def test_a_crashed_builder_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    # float32 probes, left to the library's kernels, are a segmentation fault in its version 1.7;
    # a later one may refuse them instead.
    tokens = {
        "clean_latents": (1, 64, 128),
        "noise": (1, 64, 128),
        "prompt_embeds": (1, 40, 192),
        "prompt_weights": (1, 40),
        "positions": (64, 2),
    }
    graph = TINY / "transformer.vectors.onnx"
    profile = {name: ShapeRange(shape, shape, shape) for name, shape in tokens.items()}
    with pytest.raises(BuildError) as caught:
        run_job(
            job(tmp_path, name="dit", graph=graph, weights_beside=graph, profile=profile),
            timeout_s=900,
        )
    message = str(caught.value)
    assert "building dit: tensorrt_rtx" in message
    assert "try another --precision" in message
    assert "\n" not in message
    if "crashed" in message:
        assert "SIGSEGV" in message
        assert "the log ends: " in message
        assert " GB" in message


def test_a_killed_builder_is_most_likely_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = library(
        tmp_path,
        monkeypatch,
        "import os, sys; print('last words', file=sys.stderr, flush=True)\nos.kill(os.getpid(), 9)",
    )
    with pytest.raises(BuildError, match=r"crashed \(SIGKILL\).*last words.*--bind-weights"):
        run_job(job(tmp_path, module=name), timeout_s=900)


def test_a_builder_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = library(tmp_path, monkeypatch, "import time; time.sleep(600)")
    with pytest.raises(BuildError, match=r"took longer than 1 s and was stopped.*--timeout"):
        run_job(job(tmp_path, module=name), timeout_s=1)


def test_a_refusal_of_the_parser_is_told_in_its_words(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes((TINY / "vae_encoder.onnx").read_bytes()[:5000])
    with pytest.raises(BuildError, match=r"building vae_encoder: tensorrt_rtx \S+ refused it"):
        run_job(job(tmp_path, graph=damaged), timeout_s=900)


def test_stripping_without_a_gpu_names_the_way_around(tmp_path: Path) -> None:
    """Where there is a GPU it is built: then there is nothing to be told."""
    if gpus_here():
        pytest.skip("this machine has a GPU")
    with pytest.raises(BuildError, match=r"on a GPU.*--bind-weights"):
        run_job(job(tmp_path, flags=("STRIP_PLAN", "REFIT_IDENTICAL")), timeout_s=900)
