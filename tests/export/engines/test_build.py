"""`rism build` with real engines of a small model, and what it refuses."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from rism.cli.app import app
from rism.export.engines import BuildOptions, BuildReport, build_engines
from rism.export.engines.targets import TARGETS, installed_version
from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines.bound_weights import read_bound_weights
from rism.runtime.segmenter import Segmenter
from tests.cli.conftest import invoke
from tests.conftest import seal
from tests.paths import EXAMPLES, STREET


def _version() -> str:
    return installed_version(TARGETS["tensorrt-rtx"])


ADA = BuildOptions(gpus=("8.9",), captures=("vectors",))


def run(*arguments: str | Path, code: int = 0) -> str:
    return invoke(*arguments, code=code).output


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(file.relative_to(folder)): (file.stat().st_size, file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.fixture(scope="module")
def built(half: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A bundle with engines, and what the command said."""
    folder = Path(shutil.copytree(half, tmp_path_factory.mktemp("built") / "bundle"))
    return folder, run("build", folder, "--gpu", "sm89,sm120")


def test_a_file_that_is_no_graph(half: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(half, tmp_path / "mini"))
    for file in bundle.glob("*.onnx"):
        file.write_bytes(b"no graph")
    seal(bundle)
    assert "is not a graph that can be read" in run("build", bundle, "--gpu", "sm89", code=1)
    assert not (bundle / "engines").exists()


def test_engines_are_in_the_manifest(built: tuple[Path, str]) -> None:
    bundle = Bundle.open(built[0])
    (variant,) = bundle.manifest.engines
    assert (variant.name, variant.target) == ("tensorrt-rtx-fp16", "tensorrt-rtx")
    assert variant.version == _version()
    assert variant.compute_capabilities == ("8.9", "12.0")
    assert (variant.precision, variant.stripped) == ("fp16", False)
    assert set(variant.graphs) == set(bundle.manifest.graphs)
    for plan in variant.graphs.values():
        assert bundle.file(plan.file).read_bytes()[:4] == b"vtrt", "as the library wrote it"
        assert plan.weights is None and plan.refit is None
    shapes = variant.graphs["transformer.vectors"].shapes
    latents = shapes["clean_latents"]
    assert (latents.min[0], latents.opt[0], latents.max[0]) == (1, 1, 8)
    assert latents.min[1] < latents.opt[1] <= latents.max[1]
    assert shapes["noise"].max == (1, *latents.max[1:])


def test_layers_are_listed_and_questioned(built: tuple[Path, str]) -> None:
    folder, output = built
    (variant,) = Bundle.open(folder).manifest.engines
    # The head of the VAE's attention is too wide for the library's kernels.
    assert output.count("attention fused: yes") == len(variant.graphs) - 1
    assert output.count("attention fused: not in this form (written out: 1)") == 1
    assert output.count("precision used: yes") == len(variant.graphs)
    assert output.count("no N_v x N tensor: yes") == 2  # vectors and scores
    listing = json.loads((folder / str(variant.graphs["transformer.vectors"].layers)).read_text())
    answers = {check["question"]: check["answer"] for check in listing["checks"]}
    assert answers == {
        "attention fused": "yes", "precision used": "yes", "no N_v x N tensor": "yes"
    }  # fmt: skip
    fused = [layer for layer in listing["layers"] if "mha" in layer["name"].lower()]
    # One for the attention of each of three blocks, two narrow ones for each that is read.
    assert len(fused) == 3 + 6
    assert any("doctor" in each for each in listing["not_known_without_a_gpu"])
    assert "attention fused: yes (9 fused kernels for 9 attentions)" in output
    assert "self-test: " in output


HURRY = ("--gpu", "sm89,sm120", "--timeout", "0.1")  # too little for any build


def test_what_is_there_as_asked_is_kept(built: tuple[Path, str]) -> None:
    folder, _ = built
    before = contents(folder)
    said = run("build", folder, *HURRY).splitlines()[-1]
    assert said.startswith(f"kept tensorrt-rtx-fp16 (tensorrt-rtx {_version()}, fp16, sm89, sm120)")
    assert "(--force builds it again); self-test: " in said
    assert contents(folder) == before


@pytest.mark.parametrize("flags", [["--force"], ["--batch", "1"]])
def test_a_build_anew_that_fails_leaves_the_bundle_as_it_was(
    built: tuple[Path, str], flags: list[str]
) -> None:
    folder, _ = built
    before = contents(folder)
    output = run("build", folder, *HURRY, *flags, code=1)
    assert re.search(r"took longer than 0.1 s .*--timeout", " ".join(output.split()))
    assert contents(folder) == before
    assert os.listdir(folder.parent) == [folder.name]


def test_the_bundle_still_runs_as_it_did(half: Path, built: tuple[Path, str]) -> None:
    before, after = (
        Segmenter.from_bundle(folder, provider="onnxruntime-cpu").segment(STREET, "the green van")
        for folder in (half, built[0])
    )
    np.testing.assert_array_equal(before.score_map, after.score_map)


@pytest.fixture(scope="module")
def bound(
    built: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, BuildReport]:
    """A bundle in which another variant of the same name has FP8, and its weights as inputs."""
    folder = Path(shutil.copytree(built[0], tmp_path_factory.mktemp("bound") / "bundle"))
    output = run("build", folder, "--precision", "fp8", "--gpu", "sm89", code=1)
    assert f"has no scales of activations for fp8: run rism calibrate {folder} --images" in output
    asked = folder.with_name("asked.json")
    asked.write_text(json.dumps([{"image": "street.png", "expression": "the green van"}]))
    run("calibrate", folder, "--images", EXAMPLES, "--expressions", asked)
    (first,) = Bundle.open(folder).manifest.engines
    options = replace(ADA, precision="fp8", weights="bound", name=first.name)
    return folder, build_engines(folder, options)


def test_a_variant_of_the_same_name_is_replaced(bound: tuple[Path, BuildReport]) -> None:
    folder, report = bound
    assert report.was_there == "replaced"
    (variant,) = Bundle.open(folder).manifest.engines
    assert (variant.precision, variant.compute_capabilities) == ("fp8", ("8.9",))
    assert set(variant.graphs) == {"text_encoder", "vae_encoder", "transformer.vectors"}
    plans = {file.name for file in (folder / "engines" / variant.name).glob("*.plan")}
    assert plans == {f"{name}.plan" for name in variant.graphs}


def weights_in_plan(folder: Path, graph: str) -> int:
    """Count the weights of a graph of which the plan has a copy."""
    plan = (folder / "engines" / "tensorrt-rtx-fp16" / f"{graph}.plan").read_bytes()
    stored = ir.load(folder / f"{graph}.onnx").graph.initializers.values()
    found = [each.const_value for each in stored if each.const_value is not None]
    return sum(each.tobytes()[:1024] in plan for each in found if each.nbytes > 1024)


def test_bound_weights_are_in_the_bundle_once(
    built: tuple[Path, str], bound: tuple[Path, BuildReport]
) -> None:
    folder, _ = bound
    for graph in ("text_encoder", "transformer.vectors"):
        assert weights_in_plan(built[0], graph) > 0
        assert weights_in_plan(folder, graph) == 0
    opened = Bundle.open(folder)
    (variant,) = opened.manifest.engines
    stored = f"engines/{variant.name}/transformer.e4m3.weights"
    assert stored in opened.manifest.files
    initializers = ir.load(folder / "transformer.vectors.onnx").graph.initializers
    found = read_bound_weights(opened, str(variant.graphs["transformer.vectors"].weights))
    quantised = {name: weight for name, weight in found.items() if weight.file == stored}
    assert quantised
    assert {weight.dtype for weight in quantised.values()} == {"float8_e4m3fn"}
    for name in found.keys() - quantised.keys():
        tensor, weight = initializers[name].const_value, found[name]
        assert isinstance(tensor, ir.ExternalTensor)
        assert (weight.file, weight.offset, weight.length) == (
            "transformer.weights", tensor.offset, tensor.length
        )  # fmt: skip


def test_nvfp4_is_in_the_plan_of_the_transformer(
    bound: tuple[Path, BuildReport], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bound[0], tmp_path / "bundle"))
    refused = run("build", folder, "--precision", "nvfp4", "--bind-weights", code=1)
    assert (
        "--precision is nvfp4, whose weights go into the plan: leave out --bind-weights" in refused
    )
    asked = ("--precision", "nvfp4", "--gpu", "sm120", "--capture", "vectors", "--stream-weights")
    output = run("build", folder, *asked)
    assert output.count("weights in NVFP4: yes") == output.count("products in FP4E2M1") == 1
    assert output.count("precision used: yes") == 3
    *_, variant = Bundle.open(folder).manifest.engines
    assert (variant.name, variant.precision) == ("tensorrt-rtx-nvfp4-streamed", "nvfp4")
    assert variant.streamed and not variant.stripped
    assert {file.suffix for file in (folder / "engines" / variant.name).iterdir()} == {
        ".plan", ".json"
    }  # fmt: skip
    assert os.listdir(tmp_path) == ["bundle"]


def test_fp8_is_in_the_transformer_alone(bound: tuple[Path, BuildReport]) -> None:
    _, report = bound
    for graph in report.graphs:
        checks = {check.question: check for check in graph.checks}
        # The head of the VAE's attention is too wide for the library's kernels.
        answers = {question: each.answer for question, each in checks.items()}
        fused = "not in this form" if graph.graph == "vae_encoder" else "yes"
        assert answers == {**dict.fromkeys(answers, "yes"), "attention fused": fused}
        types = {tensor.dtype for layer in graph.layers for tensor in layer.inputs}
        assert ("FP8" in types) == graph.graph.startswith("transformer.")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target", "openvino"], "'openvino' is not one of 'tensorrt-rtx', 'tensorrt'"),
        (["--precision", "bf16"], "compute in fp16.*--model small-klein --precision bf16 -o"),
        (["--precision", "int8"], "'int8' is not one of 'fp32', 'fp16', 'bf16', 'fp8'"),
        (["--gpu", "sm90"], "does not serve sm90 \\(Hopper\\)"),
        (["--capture", "tokens"], "--capture has 'tokens', this bundle has vectors, scores"),
        (["--shapes", "static"], "--shapes static needs a bundle of fixed sizes"),
        (["--shapes", "128x130"], "128x130, expected both sides a multiple of 4 pixels"),
        (["--shapes", "1024x1024"], "65536 tokens, expected at most 576"),
        (["--batch", "8/1/1"], "--batch is '8/1/1', expected growing MIN/OPT/MAX"),
        (["--strip-weights", "--bind-weights"], "exclude each other: pass one"),
        (["--name", "../up"], "--name is '../up', expected up to 64 of a-z"),
    ],
)
def test_what_cannot_be_built_is_refused_before(half: Path, flags: list[str], message: str) -> None:
    before = contents(half)
    result = CliRunner().invoke(app, ["build", str(half), *flags])
    assert result.exit_code != 0
    assert re.search(message, " ".join(result.output.split())), result.output
    assert contents(half) == before


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    assert "manifest.json" in run("build", tmp_path, code=1)
