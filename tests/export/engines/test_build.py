"""`rism build`, whole: real engines of the built-in model in a bundle, and what bad wishes get."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import onnx_ir as ir
import pytest
from typer.testing import CliRunner

from rism.cli.app import app
from rism.export.engines import BuildError, BuildOptions, build_engines
from rism.export.engines.targets import TARGETS, installed_version
from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines.bound_weights import read_bound_weights
from rism.runtime.errors import ProviderError
from rism.runtime.segmenter import Segmenter

EXAMPLES = Path(__file__).parents[3] / "examples"


def _version() -> str:
    return installed_version(TARGETS["tensorrt-rtx"])


ADA = BuildOptions(gpus=("8.9",), captures=("vectors",))


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    return result.exit_code, result.output


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(file.relative_to(folder)): (file.stat().st_size, file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.fixture(scope="module")
def built(half_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A bundle with engines, and what the command said."""
    folder = tmp_path_factory.mktemp("built") / "mini"
    shutil.copytree(half_mini, folder)
    code, output = run("build", folder, "--gpu", "sm89,sm120")
    assert code == 0, output
    return folder, output


def test_a_file_that_is_no_graph(half_mini: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mini"
    shutil.copytree(half_mini, folder)
    data = json.loads((folder / "manifest.json").read_text())
    for name in (name for name in data["files"] if name.endswith(".onnx")):
        (folder / name).write_bytes(b"no graph")
        data["files"][name] = {"size": 8, "sha256": hashlib.sha256(b"no graph").hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(data))
    code, output = run("build", folder, "--gpu", "sm89")
    assert code == 1 and "is not a graph that can be read" in output, output
    assert not (folder / "engines").exists()


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
    assert (latents.min[0], latents.opt, latents.max[0]) == (1, (1, 256, 128), 8)
    assert latents.min[1] < 256 <= latents.max[1]
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
    # One for the attention of each of eight blocks, two narrow ones for each that is read.
    assert len(fused) == 8 + 15
    assert any("doctor" in each for each in listing["not_known_without_a_gpu"])
    assert "attention fused: yes (23 fused kernels for 23 attentions)" in output
    assert "self-test: not tested: no test vectors, rism doctor" in output


def test_what_is_there_as_asked_is_kept(built: tuple[Path, str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built[0], tmp_path / "mini"))
    before = contents(folder)
    code, output = run("build", folder, "--gpu", "sm89,sm120")
    assert code == 0, output
    said = output.splitlines()[-1]
    assert said.startswith(f"kept tensorrt-rtx-fp16 (tensorrt-rtx {_version()}, fp16, sm89, sm120)")
    assert "(--force builds it again); self-test: not tested" in said
    assert contents(folder) == before
    for flags in (["--batch", "1"], ["--batch", "1", "--force"]):
        code, output = run("build", folder, "--capture", "vectors", "--gpu", "sm89", *flags)
        assert (code, output.splitlines()[-1].split()[0]) == (0, "replaced"), output


def test_the_bundle_still_runs_as_it_did(built: tuple[Path, str]) -> None:
    segmenter = Segmenter.from_bundle(built[0], provider="onnxruntime-cpu")
    result = segmenter.segment(EXAMPLES / "street.png", "the green van")
    assert 0.01 < result.mask.mean() < 0.5


def test_the_weights_are_in_the_bundle_once(built: tuple[Path, str], tmp_path: Path) -> None:
    """A variant of one name is replaced, and its plans may leave their weights to the bundle."""
    bundle = Path(shutil.copytree(built[0], tmp_path / "mini"))
    (first,) = Bundle.open(bundle).manifest.engines
    whole = (bundle / first.graphs["transformer.vectors"].file).stat().st_size
    options = BuildOptions(**{**vars(ADA), "weights": "bound", "name": first.name})
    report = build_engines(bundle, options)
    bound = {graph.graph: graph.plan_bytes for graph in report.graphs}["transformer.vectors"]
    weights = (bundle / "transformer.weights").stat().st_size
    assert bound < whole - 0.9 * weights
    opened = Bundle.open(bundle)
    (variant,) = opened.manifest.engines
    plan = variant.graphs["transformer.vectors"]
    assert set(variant.graphs) == {"text_encoder", "vae_encoder", "transformer.vectors"}
    plans = {file.name for file in (bundle / "engines" / variant.name).glob("*.plan")}
    assert plans == {f"{name}.plan" for name in variant.graphs}
    assert plan.weights is not None
    graph = ir.load(bundle / "transformer.vectors.onnx").graph
    for name, weight in read_bound_weights(opened, plan.weights).items():
        tensor = graph.initializers[name].const_value
        assert isinstance(tensor, ir.ExternalTensor)
        assert (weight.file, weight.offset, weight.length) == (
            "transformer.weights", tensor.offset, tensor.length
        )  # fmt: skip


def test_fp8(bundle: Path) -> None:
    code, output = run("build", bundle, "--precision", "fp8", "--gpu", "sm89")
    assert code == 1
    assert f"has no FP8 scales: run rism calibrate {bundle} --images DIR" in output
    code, output = run("calibrate", bundle, "--images", EXAMPLES, "--expressions", _asked(bundle))
    assert code == 0, output
    report = build_engines(bundle, BuildOptions(gpus=("8.9",), precision="fp8", weights="bound"))
    for graph in report.graphs:
        checks = {check.question: check for check in graph.checks}
        # The head of the VAE's attention is too wide for the library's kernels.
        answers = {question: each.answer for question, each in checks.items()}
        fused = "not in this form" if graph.graph == "vae_encoder" else "yes"
        assert answers == {**dict.fromkeys(answers, "yes"), "attention fused": fused}
        if graph.graph.startswith("transformer."):
            assert checks["precision used"].detail.endswith("the graph quantises 34")
    opened = Bundle.open(bundle)
    (variant,) = opened.manifest.engines
    stored = f"engines/{variant.name}/transformer.e4m3.weights"
    assert variant.precision == "fp8" and stored in opened.manifest.files
    weights = read_bound_weights(opened, str(variant.graphs["transformer.vectors"].weights))
    quantised = [each for each in weights.values() if each.file == stored]
    assert len(quantised) == 34 and {each.dtype for each in quantised} == {"float8_e4m3fn"}
    # Encoders stay what they are.
    assert all("e4m3" not in layer for layer in _types(bundle, variant.graphs["text_encoder"].file))


def _asked(bundle: Path) -> Path:
    file = bundle.parent / "asked.json"
    file.write_text(json.dumps([{"image": "street.png", "expression": "the green van"}]))
    return file


def _types(bundle: Path, plan: str) -> set[str]:
    listing = json.loads((bundle / plan.replace(".plan", ".layers.json")).read_text())
    return {tensor[2].lower() for layer in listing["layers"] for tensor in layer["inputs"]}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target", "openvino"], "'openvino' is not one of 'tensorrt-rtx', 'tensorrt'"),
        (["--precision", "bf16"], "compute in fp16.*rism export --model mini --precision bf16 -o"),
        (["--precision", "int8"], "'int8' is not one of 'fp32', 'fp16', 'bf16', 'fp8'"),
        (["--gpu", "sm90"], "does not serve sm90 \\(Hopper\\)"),
        (["--capture", "tokens"], "--capture has 'tokens', this bundle has vectors, scores"),
        (["--shapes", "static"], "--shapes static needs a bundle of fixed sizes"),
        (["--shapes", "128x130"], "128x130, expected both sides a multiple of 8 pixels"),
        (["--shapes", "1024x1024"], "16384 tokens, expected at most 256"),
        (["--batch", "8/1/1"], "--batch is '8/1/1', expected growing MIN/OPT/MAX"),
        (["--strip-weights", "--bind-weights"], "exclude each other: pass one"),
        (["--name", "../up"], "--name is '../up', expected up to 64 of a-z"),
    ],
)
def test_what_cannot_be_built_is_refused_before(
    half_mini: Path, flags: list[str], message: str
) -> None:
    before = contents(half_mini)
    code, output = run("build", half_mini, *flags)
    assert code != 0
    said = " ".join(output.split())
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(said)
    assert contents(half_mini) == before


def test_a_build_that_is_stopped_leaves_the_bundle_as_it_was(bundle: Path) -> None:
    before = contents(bundle)
    with pytest.raises(BuildError, match=r"took longer than 1 s.*--timeout"):
        build_engines(bundle, BuildOptions(**{**vars(ADA), "timeout_s": 1.0}))
    assert contents(bundle) == before
    assert os.listdir(bundle.parent) == [bundle.name]


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="is about machines without a GPU")
def test_without_a_gpu_weights_cannot_be_stripped(bundle: Path) -> None:
    before = contents(bundle)
    options = BuildOptions(**{**vars(ADA), "weights": "stripped"})
    with pytest.raises((BuildError, ProviderError), match=r"--bind-weights"):
        build_engines(bundle, options)
    assert contents(bundle) == before


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    code, output = run("build", tmp_path)
    assert code == 1
    assert "manifest.json" in output
