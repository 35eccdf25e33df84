"""From an image to a mask on the tiny bundle, and against NumPy."""

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from rism.runtime import InputError, ProviderError, Segmenter
from rism.runtime.errors import BundleError
from tests.conftest import Reseal
from tests.runtime.spies import spied


def truth(colours: np.ndarray, channel: int) -> np.ndarray:
    return np.asarray(colours[..., channel] > 128)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("capture", ["vectors", "matrices", "scores"])
def test_finds_the_colour(tiny_master: Path, colours: np.ndarray, capture: str) -> None:
    segmenter = Segmenter.from_bundle(tiny_master, provider="cpu", capture=capture, threads=1)
    for channel, word in enumerate(["red", "green", "blue"]):
        result = segmenter.segment(colours, f"the {word}")
        assert result.mask_hw.shape == (96, 160)
        assert result.mask_hw.dtype == np.bool_
        assert iou(result.mask, truth(colours, channel)) > 0.75, word
        assert result.reason is None
        assert result.score > 0
        assert result.separability > 0
        assert result.score_map.shape == result.refined.shape == result.coarse.shape == (12, 20)


def test_against_numpy(segmenter: Segmenter, colours: np.ndarray) -> None:
    """The graphs' own arithmetic, repeated by hand from the image on."""
    state = segmenter.set_image(colours)
    rows, columns = state.plan.grid_hw
    x = state.clean_latents[0].astype(np.float64)
    want = np.array([1.0, -0.5, -0.5])  # "red"
    a = np.stack([x @ want, 2 * (x @ want)])
    like = np.exp(x @ x.T)
    raw = (a @ (like / like.sum(1, keepdims=True)).T).sum(0)
    refined = (raw - raw.min()) / (raw.max() - raw.min())
    noise = np.asarray(segmenter.bundle.noise())[: rows * columns]
    positions = np.indices((rows, columns)).reshape(2, -1)
    f = x + 1e-3 * noise + 1e-3 * positions.mean(0)[:, None]
    result = segmenter.segment(state, "red")
    np.testing.assert_allclose(result.refined.ravel(), refined, atol=1e-5)
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    region = refined > 0.8
    scores = f @ (f[region].mean(0) - f[~region].mean(0))
    np.testing.assert_allclose(result.score_map.ravel(), scores, atol=1e-5)


def test_images_and_expressions_are_encoded_once(tiny_master: Path, colours: np.ndarray) -> None:
    segmenter, spies = spied(tiny_master)
    segmenter.segment(colours, "red")
    segmenter.segment(colours.copy(), ["red", "blue", "red"])
    assert len(spies["vae_encoder"].fed) == 1
    assert spies["text_encoder"].batches("input_ids") == [1, 1]
    other = colours.copy()
    other[0, 0] = 7
    segmenter.segment(other, "red")
    assert len(spies["vae_encoder"].fed) == 2


def test_the_result_in_json(segmenter: Segmenter, colours: np.ndarray) -> None:
    result = segmenter.segment(colours, "  the   green ", upsample="bilinear")
    data = json.loads(json.dumps(result.to_json_dict()))
    expected = {
        "expression": "the green", "instruction": "remove the green", "width": 160, "height": 96,
        "provider": "cpu", "precision": "float32", "model": "tiny",
        "area_px": int(result.mask.sum()),
    }  # fmt: skip
    assert {key: data[key] for key in expected} == expected
    assert set(data["timings_ms"]) == {"image", "vae", "text", "transformer", "method", "mask"}
    rows, columns = np.nonzero(result.mask)
    assert data["box_xyxy"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_array_equal(result.scores_hw > 0, result.mask)


def test_a_result_prints_short_and_can_be_pickled(
    segmenter: Segmenter, colours: np.ndarray
) -> None:
    state = segmenter.set_image(colours)
    result = segmenter.segment(state, "the green")
    assert repr(result) == f"Segmentation('the green', 160x96, box_xyxy={result.box_xyxy})"
    assert repr(state) == "ImageState(160x96, 12x20 tokens)"
    data = pickle.dumps(result)
    maps = (result.score_map, result.coarse, result.refined, result.token_attention)
    assert result.token_attention is not None
    assert len(data) < sum(each.nbytes for each in maps) + 2000
    again = pickle.loads(data)
    assert again.to_json_dict() == result.to_json_dict()
    assert again.plan == result.plan
    for name in ("mask_hw", "score_map", "coarse", "refined", "scores_hw"):
        np.testing.assert_array_equal(getattr(again, name), getattr(result, name))
    assert again.mask.dtype == np.bool_


def test_token_attention(segmenter: Segmenter, colours: np.ndarray) -> None:
    result = segmenter.segment(colours, "the green")
    assert result.tokens == ("<s>", "remove", "the", "green", "</s>")
    assert result.token_attention is not None
    assert result.token_attention.shape == (5, 12, 20)
    green = result.token_attention[3]
    assert green[6, 10] > green[0, 0]


def test_a_constant_map_is_an_empty_mask(segmenter: Segmenter, colours: np.ndarray) -> None:
    result = segmenter.segment(colours, "red", prompt_weights=np.zeros(8))
    assert result.reason == "the attention map is constant"
    assert not result.mask.any()
    assert result.score == result.separability == 0.0
    assert result.box_xyxy is None
    assert result.area_px == 0
    assert result.to_json_dict()["box_xyxy"] is None
    grey = segmenter.segment(np.full((40, 40, 3), 128, np.uint8), "red")
    assert grey.reason is not None and not grey.mask.any()
    assert segmenter.segment(np.zeros((1, 1, 3), np.uint8), "red").mask.shape == (1, 1)


def test_weights_choose_among_words(segmenter: Segmenter, colours: np.ndarray) -> None:
    only_blue = np.array([0, 0, 0, 1, 0, 0, 0, 0], np.float32)
    result = segmenter.segment(colours, "red blue", prompt_weights=only_blue)
    assert iou(result.mask, truth(colours, 2)) > 0.75


def test_words_of_the_template_can_be_left_out(tiny_master: Path, colours: np.ndarray) -> None:
    blue = Segmenter.from_bundle(tiny_master, provider="cpu", template="{expression} blue blue")
    told = blue.segment(colours, "red", prompt_weights="instruction")
    assert iou(told.mask, truth(colours, 2)) > 0.75
    asked = blue.segment(colours, "red", prompt_weights="expression")
    assert iou(asked.mask, truth(colours, 0)) > 0.75


def test_wrong_calls(segmenter: Segmenter, tiny_master: Path, colours: np.ndarray) -> None:
    with pytest.raises(InputError, match="there are no expressions, expected at least one"):
        segmenter.segment(colours, [])
    for wrong in (None, 3, b"red", {"red": 1}):
        with pytest.raises(InputError, match=r"of type \w+, expected text or a list of texts"):
            segmenter.segment(colours, wrong)
    with pytest.raises(InputError, match="the expression is of type NoneType, expected text"):
        segmenter.segment(colours, [None])
    with pytest.raises(InputError, match="an image of type NoneType cannot be read"):
        segmenter.segment(None, "red")
    with pytest.raises(InputError, match="capture is 'dreams', this bundle has vectors, matrices"):
        Segmenter.from_bundle(tiny_master, capture="dreams")


def test_a_state_belongs_to_its_bundle(
    segmenter: Segmenter, tiny_bundle: Path, reseal: Reseal, colours: np.ndarray
) -> None:
    other = Segmenter.from_bundle(
        reseal(tiny_bundle, lambda data: data["model"].update(name="another")), provider="cpu"
    )
    with pytest.raises(InputError, match="made by another bundle: call set_image"):
        other.segment(segmenter.set_image(colours), "red")


def test_cuda_is_never_replaced_silently(
    tiny_master: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ProviderError, match=r"cuda is not in this onnxruntime.*install .*gpu"):
        Segmenter.from_bundle(tiny_master, provider="cuda")
    auto = Segmenter.from_bundle(tiny_master, provider="auto")
    assert auto.provider == "cpu"
    assert auto.provider_reason == "auto: this onnxruntime has no CUDA"
    for provider in ("auto", "cpu"):
        with pytest.raises(ProviderError, match=r"device 3 is a GPU, and provider cpu \(.*leave"):
            Segmenter.from_bundle(tiny_master, provider=provider, device=3)


def test_auto_says_why_cuda_did_not_start(
    tiny_master: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CUDA build without a device quietly runs on the CPU; that is found out."""
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])

    def cpu_whatever_was_asked(file: str, options: Any, **asked: Any) -> Any:
        # onnxruntime's own way out of a failure is silent.
        assert asked["enable_fallback"] == 0
        return real(file, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", cpu_whatever_was_asked)
    with pytest.raises(ProviderError, match=r"could not start on device 0 .*use --provider cpu"):
        Segmenter.from_bundle(tiny_master, provider="cuda")
    auto = Segmenter.from_bundle(tiny_master, provider="auto")
    assert auto.provider == "cpu"
    assert auto.provider_reason.startswith("auto: onnxruntime-cuda did not start (provider cuda")


@pytest.fixture
def bfloat16(tiny_bundle: Path, reseal: Reseal) -> Path:
    return reseal(tiny_bundle, lambda data: data["precision"].update(compute="bfloat16"))


def test_bfloat16_is_refused_on_a_cpu_before_anything_is_loaded(
    bfloat16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", None)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    for provider, why in (("cpu", "asked for"), ("auto", "auto: this onnxruntime has no CUDA")):
        with pytest.raises(ProviderError) as error:
            Segmenter.from_bundle(bfloat16, provider=provider)
        assert str(error.value) == (
            f"provider cpu ({why}) cannot run this bundle, which computes in bfloat16, expected "
            "float32 or float16: export with --precision fp32 or fp16, or use --provider cuda"
        )


def test_bfloat16_is_no_reason_to_give_up_a_gpu(
    bfloat16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def session(file: str, options: Any, providers: Any, **asked: Any) -> Any:
        tried.append(providers[0][0])
        raise RuntimeError("CUDA failure 35: driver\ntoo old")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(ProviderError, match="provider cuda could not start on device 0"):
        Segmenter.from_bundle(bfloat16, provider="cuda")
    assert set(tried) == {"CUDAExecutionProvider"}
    with pytest.raises(
        ProviderError, match=r"\(auto: onnxruntime-cuda did not start .*driver too old"
    ) as error:
        Segmenter.from_bundle(bfloat16, provider="auto")
    assert set(tried) == {"CUDAExecutionProvider"}
    assert "which computes in bfloat16" in str(error.value) and "\n" not in str(error.value)


def test_without_onnxruntime(tiny_master: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ProviderError, match=r"onnxruntime cannot be imported .*pip .*\[cpu\]"):
        Segmenter.from_bundle(tiny_master)


def test_a_graph_that_returns_another_size(
    tiny_bundle: Path, reseal: Reseal, colours: np.ndarray
) -> None:
    segmenter = Segmenter.from_bundle(
        reseal(tiny_bundle, lambda data: data["geometry"].update(token_px=4)), provider="cpu"
    )
    with pytest.raises((BundleError, InputError), match="expected"):
        segmenter.segment(colours, "red")


def test_a_cpu_runs_its_own_form_of_a_graph(
    tiny_bundle: Path, reseal: Reseal, colours: np.ndarray, opened: list[str]
) -> None:
    before = Segmenter.from_bundle(tiny_bundle, provider="cpu").segment(colours, "red")
    file = tiny_bundle / "text_encoder.onnx"
    file.rename(tiny_bundle / "text.cpu.onnx")
    file.write_bytes(b"a form that a CPU need not read")
    reseal(tiny_bundle, lambda data: data["graphs"]["text_encoder"].update(cpu="text.cpu.onnx"))
    opened.clear()
    after = Segmenter.from_bundle(tiny_bundle, provider="cpu").segment(colours, "red")
    assert "text.cpu.onnx" in opened and "text_encoder.onnx" not in opened
    assert (after.mask_hw == before.mask_hw).all()
