"""A bundle whose modulation is a graph of its own: once per prompt, kept by both caches."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rism.runtime import BundleError, Segmenter
from rism.runtime.engines import memory
from tests.conftest import Reseal, graph_entry, write_graph
from tests.runtime.spies import spied
from tests.runtime.vision_language import LIGHT, TRANSFORMER_BODY, WORDS

INPUTS = (
    "float[batch, n_v, 3] clean, float[1, n_v, 3] noise, float[batch, n_p, 3] embeds,"
    " float[batch, n_p] w, float[batch, n_p] mask, float[n_p, 3] placed, float[n_v, 2] positions"
)
OUTPUTS = (
    "float[batch, 1, n_v] a, float[batch, 1, n_v] ta, float[batch, n_v, 3] features,"
    " float[batch, n_v, n_p] per_token"
)
MEAN = """
    there = Unsqueeze(prompt_mask, last)
    own = Mul(prompt_embeds, there)
    total = ReduceSum<keepdims=0>(own, axis_1)
    count = ReduceSum<keepdims=0>(there, axis_1)
    modulation = Div(total, count)
"""


def graphs(folder: Path, *, inside: bool) -> dict[str, Any]:
    """Write the transformer with the prompt's mean in its features, and what makes that mean."""
    some = {"hundredth": np.float32(0.01), "last": np.array([2]), "axis_1": np.array([1])}
    body = TRANSFORMER_BODY.replace("features = Add", "f_1 = Add")
    body += "shift = Unsqueeze(modulation, axis_1)\nfeatures = Add(f_1, shift)"
    made = {**some, "light": LIGHT}
    signature = f"({INPUTS}, float[batch, 3] modulation) => ({OUTPUTS})"
    if inside:
        mean = MEAN.replace("prompt_mask", "mask").replace("prompt_embeds", "embeds")
        body, signature = mean + body, f"({INPUTS}) => ({OUTPUTS})"
    write_graph(folder / "transformer.onnx", signature, body, made)
    found = {"transformer.vectors": graph_entry(folder / "transformer.onnx")}
    if not inside:
        write_graph(
            folder / "modulation.onnx",
            "(float[batch, n, 3] prompt_embeds, float[batch, n] prompt_mask)"
            " => (float[batch, 3] modulation)",
            MEAN,
            some,
        )
        found["modulation"] = graph_entry(folder / "modulation.onnx")
    return found


@pytest.fixture
def modulated(vision_bundle: Path, reseal: Reseal) -> Path:
    made = graphs(vision_bundle, inside=False)
    return reseal(vision_bundle, lambda data: data["graphs"].update(made))


def test_it_is_that_of_a_transformer_that_makes_it(
    modulated: Path, reseal: Reseal, colours: np.ndarray
) -> None:
    own, spies = spied(modulated)
    found = own.segment(colours, WORDS)
    assert [len(feeds["prompt_mask"]) for feeds in spies["modulation"].fed] == [len(WORDS)]
    own.segment(colours, WORDS[::-1])
    assert len(spies["modulation"].fed) == 1, "made once for each prompt"
    (modulated / "modulation.onnx").unlink()
    made = graphs(modulated, inside=True)

    def as_before(data: dict[str, Any]) -> None:
        del data["graphs"]["modulation"]
        data["graphs"] |= made

    old = Segmenter.from_bundle(reseal(modulated, as_before), provider="cpu")
    for one, other in zip(found, old.segment(colours, WORDS), strict=True):
        np.testing.assert_allclose(one.score_map, other.score_map, atol=1e-6)


def test_it_is_kept_beside_the_embedding(
    modulated: Path, tmp_path: Path, colours: np.ndarray, opened: list[str]
) -> None:
    def run() -> list[bytes]:
        opened.clear()
        segmenter = Segmenter.from_bundle(
            modulated, provider="cpu", threads=1, cache_dir=tmp_path / "c"
        )
        return [result.score_map.tobytes() for result in segmenter.segment(colours, WORDS)]

    first = run()
    assert {"text_encoder.onnx", "modulation.onnx"} <= {*opened}
    entries = sorted((tmp_path / "c").glob("*.npy"))
    assert len(entries) == 2 * len(WORDS)
    assert run() == first
    assert sorted(opened) == ["transformer.onnx", "vae_encoder.onnx"]
    # One of the two is not enough.
    next(entry for entry in entries if np.load(entry).shape == (1, 3)).unlink()
    run()
    assert {"text_encoder.onnx", "modulation.onnx"} <= {*opened}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda graphs: graphs.pop("modulation"), "modulation.*expected only"),
        (
            lambda graphs: graphs["transformer.vectors"]["inputs"].pop("modulation"),
            r"what graph 'modulation' makes, \['batch', 3\]",
        ),
        (
            lambda graphs: graphs["modulation"]["outputs"]["modulation"].update(shape=["b", 4]),
            r"what graph 'modulation' makes, \['b', 4\]",
        ),
    ],
)
def test_graphs_that_do_not_go_together(modulated: Path, change: Any, says: str) -> None:
    file = modulated / "manifest.json"
    data = json.loads(file.read_text())
    change(data["graphs"])
    file.write_text(json.dumps(data))
    with pytest.raises(BundleError, match=says):
        Segmenter.from_bundle(modulated, provider="cpu", verify=False)


def test_in_stages_it_has_the_same_bits(
    modulated: Path, reseal: Reseal, colours: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights in float16, cast where they are multiplied, in the whole graph and in its stages."""
    import onnx

    rng, width, blocks = np.random.default_rng(0), 768, 4
    made = graphs(modulated, inside=False)
    shapes = [(3, width), *[(width, width)] * blocks, (width, 3)]
    body = MEAN.replace("modulation = Div", "x0 = Div")
    some: dict[str, Any] = {"last": np.array([2]), "axis_1": np.array([1])}
    for at, shape in enumerate(shapes):
        some[f"blocks.{at}.w"] = (rng.standard_normal(shape) / shape[0] ** 0.5).astype(np.float16)
        to = "modulation" if at == len(shapes) - 1 else f"x{at + 1}"
        body += f'w{at} = Cast<to=1>("blocks.{at}.w")\n{to} = MatMul(x{at}, w{at})\n'
    file = modulated / "modulation.onnx"
    signature = "(float[batch, n, 3] prompt_embeds, float[batch, n] prompt_mask)"
    write_graph(file, f"{signature} => (float[batch, 3] modulation)", body, some)
    model = onnx.shape_inference.infer_shapes(onnx.load(file))
    onnx.save_model(model, file, save_as_external_data=True, location="modulation.weights")
    bundle = reseal(modulated, lambda data: data["graphs"].update(made))
    monkeypatch.setattr(memory, "_taken", lambda: 0)
    monkeypatch.setattr(memory, "CPU_BASE_BYTES", 0)
    monkeypatch.setattr(memory.RunSizes, "activation", lambda *_, **__: 0)
    wanted = Segmenter.from_bundle(bundle, provider="cpu").segment(colours, WORDS[0])
    found = Segmenter.from_bundle(bundle, provider="cpu", memory="3MB")
    assert "modulation in" in found.provider_reason
    assert found.segment(colours, WORDS[0]).score_map.tobytes() == wanted.score_map.tobytes()
