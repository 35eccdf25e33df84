"""Model repositories: NVIDIA's schema, the graphs' tensors, and the chain as a server runs it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from rism.export.triton import Serving, TritonOptions, export_triton
from rism.runtime.bundle.reader import Bundle, resolve_bundle
from rism.runtime.method.upsampling import upsample
from tests.export.triton.client import recorded, request, same
from tests.export.triton.server import RefusedError, Server
from tests.paths import ROOT, STREET

EXPRESSIONS = ["the green van", "the red car", "the biggest cup"]


@pytest.fixture(scope="module")
def mini() -> Bundle:
    return Bundle.open(resolve_bundle())


@pytest.fixture(scope="module")
def served(mini: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Server:
    output = tmp_path_factory.mktemp("triton") / "repository"
    report = export_triton(mini, output, TritonOptions())
    assert [chain.name for chain in report.chains] == ["rism_scores"]
    return Server(output)


def test_models_and_tensors(served: Server) -> None:
    batches = {name: config.max_batch_size for name, config in served.configs.items()}
    assert batches == {
        "rism_scores": 0,
        "text_encoder": 8,
        "transformer_inputs": 0,
        "transformer_scores": 8,
        "vae_encoder": 0,
    }
    chain = served.configs["rism_scores"]
    assert {t.name: list(t.dims) for t in chain.input} == {
        "input_ids": [-1, 48],
        "attention_mask": [-1, 48],
        "image": [1, 3, -1, -1],
        "prompt_weights": [-1, 48],
    }
    assert {t.name: list(t.dims) for t in chain.output} == {
        "scores": [-1, -1],
        "coarse_attention": [-1, -1],
        "refined_attention": [-1, -1],
        "separability": [-1, 1],
    }
    # What it is given of the prompts is small, and what it does belongs on the CPU.
    joint = served.configs["transformer_inputs"]
    assert {t.name for t in joint.input} == {"image", "clean_latents", "prompt_weights"}
    assert [group.kind for group in joint.instance_group] == [joint.instance_group[0].KIND_CPU]
    batching = served.configs["transformer_scores"].dynamic_batching
    assert batching.max_queue_delay_microseconds == 1000
    assert not batching.preferred_batch_size
    assert not served.configs["transformer_scores"].instance_group


def test_the_chain_gives_the_segmenters_masks(served: Server, mini: Bundle) -> None:
    results, engines, segmenter = recorded(mini, STREET, EXPRESSIONS)
    served.runs.clear()
    [answer] = served.infer("rism_scores", request(served, "rism_scores", engines))
    assert served.runs["vae_encoder"] == [0]
    assert served.runs["transformer_scores"] == [len(EXPRESSIONS)]
    same(answer, engines["transformer"].gave[-1])
    plan = segmenter.set_image(STREET).plan
    for scores, result in zip(answer["scores"], results, strict=True):
        mask = upsample(scores.reshape(plan.grid_hw), plan) > 0
        assert (mask == result.mask_hw).mean() > 0.9999, result.expression
        assert 0.001 < mask.mean() < 0.9


def test_requests_of_several_pictures_are_joined_by_their_grids(
    served: Server, mini: Bundle
) -> None:
    rng = np.random.default_rng(3)
    wide, other = (rng.integers(0, 255, (90, 160, 3), dtype=np.uint8) for _ in range(2))
    pictures = [wide, other, np.ascontiguousarray(wide.transpose(1, 0, 2))]
    each = [recorded(mini, picture, EXPRESSIONS[:2]) for picture in pictures]
    grids = [
        segmenter.set_image(p).plan.grid_hw
        for p, (_, _, segmenter) in zip(pictures, each, strict=True)
    ]
    assert grids[0] == grids[1] == grids[2][::-1] != grids[2]
    served.runs.clear()
    sent = [request(served, "rism_scores", engines) for _, engines, _ in each]
    answers = served.infer("rism_scores", *sent)
    # The two wide ones share a run; the tall one has as many tokens, but others.
    assert served.runs["transformer_scores"] == [4, 2]
    assert served.runs["text_encoder"] == [6]
    for answer, (_, engines, _) in zip(answers, each, strict=True):
        same(answer, engines["transformer"].gave[-1])


def test_one_expression_and_too_many(served: Server, mini: Bundle) -> None:
    _, engines, _ = recorded(mini, STREET, EXPRESSIONS[:1])
    sent = request(served, "rism_scores", engines)
    [answer] = served.infer("rism_scores", sent)
    same(answer, engines["transformer"].gave[-1])
    many = {k: v if k == "image" else np.repeat(v, 9, axis=0) for k, v in sent.items()}
    with pytest.raises(RefusedError, match="at most 8"):
        served.infer("rism_scores", many)
    # 25 x 25 tokens are more than mini has noise for, which 24 x 24 are not.
    fits, large = (np.zeros((1, 3, side, side), np.float32) for side in (384, 400))
    [answer] = served.infer("rism_scores", sent | {"image": fits})
    assert answer["scores"].shape == (1, 576)
    with pytest.raises(InvalidArgument):
        served.infer("rism_scores", sent | {"image": large})


@pytest.mark.parametrize("capture", ["vectors", "matrices"])
def test_other_captures(capture: str, mini: Bundle, tmp_path: Path) -> None:
    export_triton(mini, tmp_path / "out", TritonOptions(capture=capture, link=True))
    server = Server(tmp_path / "out")
    _, engines, _ = recorded(mini, STREET, EXPRESSIONS[:2], capture)
    [answer] = server.infer(f"rism_{capture}", request(server, f"rism_{capture}", engines))
    same(answer, engines["transformer"].gave[-1])
    weights = tmp_path / f"out/transformer_{capture}/1/transformer.weights"
    assert weights.samefile(mini.file("transformer.weights"))


def test_options_reach_the_configurations(mini: Bundle, tmp_path: Path) -> None:
    serving = Serving(device="gpu", instances=2, queue_delay_us=50)
    options = TritonOptions(serving=serving, max_batch=3, prefix="k_", tau=0.5)
    report = export_triton(mini, tmp_path / "out", options)
    assert report.copied_bytes > 7_000_000
    server = Server(tmp_path / "out")
    assert set(server.configs) == {
        "k_rism_scores", "k_text_encoder", "k_vae_encoder", "k_transformer_inputs",
        "k_transformer_scores",
    }  # fmt: skip
    transformer = server.configs["k_transformer_scores"]
    assert transformer.max_batch_size == 3
    assert transformer.dynamic_batching.max_queue_delay_microseconds == 50
    [group] = transformer.instance_group
    assert (group.count, group.KIND_GPU) == (2, group.kind)
    [group] = server.configs["k_transformer_inputs"].instance_group
    assert group.kind == group.KIND_CPU
    _, engines, segmenter = recorded(mini, STREET, EXPRESSIONS[:2])
    segmenter.segment(STREET, EXPRESSIONS[:2], tau=0.5)
    sent = request(server, "k_rism_scores", engines)
    same(server.infer("k_rism_scores", sent)[0], engines["transformer"].gave[-1])


def test_no_batching_where_one_row_is_the_most(mini: Bundle, tmp_path: Path) -> None:
    export_triton(mini, tmp_path / "out", TritonOptions(max_batch=1))
    config = Server(tmp_path / "out").configs["transformer_scores"]
    assert config.max_batch_size == 1 and not config.HasField("dynamic_batching")


def test_torch_is_not_needed() -> None:
    absent = {"torch", "diffusers", "transformers", "onnxruntime", "tritonclient"}
    code = f"import sys, rism.export.triton; print({absent} & {{*sys.modules}})"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout == "set()\n"
