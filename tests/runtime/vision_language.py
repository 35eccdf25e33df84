"""A tokenizer and a bundle of a text encoder that looks at images, made on the spot."""

import json
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre

from rism.runtime.bundle.prompt_spec import PromptRules, QuoteRules, VisionRules
from tests.conftest import graph_entry, tiny_manifest, write_graph, write_vae_encoder

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
SPECIAL += ["<|image_pad|>"]
PLAIN = ["<tool_call>", "</tool_call>"]
PREFIX = "<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\nEnhance \"it\": 'now'"
PICTURE = "Picture 1: <|vision_start|><|image_pad|><|vision_end|>"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
CUTS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
CUTS += r"|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXT = [
    "remove the man's hat and the \u201csign\u201d that says \u201cSTOP\u201d",
    'Picture 1: the "green" van 招牌 \u201c停\u201d system user assistant helpful enhance',
    "\u201c \u201d \u201c \u201d \u201ca\u201d \u201cb\u201d",
] * 5

VISION = VisionRules(
    image_token="<|image_pad|>", view_resample="lanczos", align=False, resample="bicubic",
    min_pixels=4 * 28 * 28, max_pixels=9 * 28 * 28, patch_px=14, merge=2, frames=2,
    mean=(0.5, 0.4, 0.3), std=(0.3, 0.2, 0.1),
)  # fmt: skip


@cache
def tokenizer_json() -> bytes:
    """Byte-level, with the model family's own way of cutting words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre.Sequence([pre.Split(Regex(CUTS), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = ["!", *(c for c in pre.ByteLevel.alphabet() if c != "!")]
    trainer = trainers.BpeTrainer(
        vocab_size=420, show_progress=False, initial_alphabet=alphabet, special_tokens=[]
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False) for text in PLAIN])
    return tokenizer.to_str().encode()


def tokenizer() -> Tokenizer:
    return Tokenizer.from_buffer(tokenizer_json())


def rules(**changes: Any) -> PromptRules:
    """Like the first generation of editors: the image before the instruction."""
    given: dict[str, Any] = {
        "template": "remove {expression}", "prefix": PREFIX + PICTURE, "suffix": SUFFIX,
        "max_length": 300, "pad_id": 3, "tokenizer": "tokenizer.json", "drop": 5,
        "padding": "zeros", "unseen_id": 0, "unseen_attended": False,
        "quotes": QuoteRules("toggle", len(PREFIX)), "vision": VISION,
    }  # fmt: skip
    return PromptRules(**{**given, **changes})


def later_rules(**changes: Any) -> PromptRules:
    """Like the second generation: the image after it, and positions on the grid."""
    given: dict[str, Any] = {
        "prefix": PREFIX + " ", "suffix": PICTURE + SUFFIX, "padding": "none",
        "unseen_attended": True, "positions": "grid", "grid_offset_px": 11.0,
        "quotes": QuoteRules("paired", len(PREFIX)),
    }  # fmt: skip
    return rules(**{**given, **changes})


# A whole bundle: graphs that are small, real, and sensitive to every input.
WIDTH = 3
SMALL_VISION = replace(VISION, patch_px=4, min_pixels=8 * 64, max_pixels=12 * 64)
SMALL = later_rules(vision=SMALL_VISION, max_length=90)
VISION_BODY = """
    by_channel = Reshape(pixel_values, channels)
    colours = ReduceMean<axes=[2], keepdims=0>(by_channel)
    places = Cast<to=1>(patch_positions)
    place = ReduceMean<axes=[1], keepdims=1>(places)
    small = Mul(place, hundredth)
    patches = Add(colours, small)
    cells = Reshape(patches, blocks)
    image_embeds = ReduceMean<axes=[1], keepdims=0>(cells)
"""
TEXT_BODY = """
    words = Gather(table, input_ids)
    is_image = Equal(input_ids, image)
    one = Cast<to=7>(is_image)
    counted = CumSum(one, axis)
    before = Sub(counted, single)
    which = Max(before, none)
    seen = Gather(image_embeds, which)
    shown = Cast<to=1>(is_image)
    shown_3 = Unsqueeze(shown, last)
    looked = Mul(seen, shown_3)
    places = Cast<to=1>(position_ids)
    weighted = Mul(places, axes)
    place = ReduceSum<keepdims=0>(weighted, first)
    quoted = Cast<to=1>(quoted_mask)
    scalar = Add(place, quoted)
    scalar_3 = Unsqueeze(scalar, last)
    w_1 = Add(words, looked)
    w_2 = Add(w_1, scalar_3)
    there = Cast<to=1>(attention_mask)
    there_3 = Unsqueeze(there, last)
    all = Mul(w_2, there_3)
    prompt_embeds = Slice(all, drop, end, axis_1)
"""
TRANSFORMER_BODY = """
    weights = Mul(w, mask)
    w3 = Unsqueeze(weights, last)
    stand = ReduceMean<axes=[1], keepdims=1>(placed)
    small = Mul(stand, hundredth)
    moved = Add(embeds, small)
    lit = Add(moved, light)
    words = Mul(lit, w3)
    want = ReduceSum<keepdims=1>(words, axis_1)
    want_t = Transpose<perm=[0, 2, 1]>(want)
    a_n = MatMul(clean, want_t)
    a = Transpose<perm=[0, 2, 1]>(a_n)
    clean_t = Transpose<perm=[0, 2, 1]>(clean)
    like = MatMul(clean, clean_t)
    t = Softmax<axis=-1>(like)
    ta_n = MatMul(t, a_n)
    ta = Transpose<perm=[0, 2, 1]>(ta_n)
    far = ReduceMean<axes=[1], keepdims=1>(positions)
    far_small = Mul(far, hundredth)
    noise_small = Mul(noise, hundredth)
    f_0 = Add(clean, noise_small)
    features = Add(f_0, far_small)
    words_t = Transpose<perm=[0, 2, 1]>(words)
    per_token = MatMul(clean, words_t)
"""


def table() -> np.ndarray:
    size = tokenizer().get_vocab_size()
    return np.random.default_rng(5).standard_normal((size, WIDTH), dtype=np.float32)


def make_bundle(folder: Path, given: PromptRules = SMALL, **geometry: Any) -> Path:
    """Write everything but the list of files: `reseal` makes that."""
    folder.mkdir()
    _write_graphs(folder, given)
    (folder / "tokenizer.json").write_bytes(tokenizer_json())
    noise = np.random.default_rng(0).standard_normal((400, WIDTH), dtype=np.float32)
    (folder / "noise.f32").write_bytes(noise.astype("<f4").tobytes())
    prompt = {key: value for key, value in asdict(given).items() if value is not None}
    names = ["vision_encoder", "text_encoder", "vae_encoder"]
    graphs = {name: graph_entry(folder / f"{name}.onnx") for name in names}
    graphs["transformer.vectors"] = graph_entry(folder / "transformer.onnx")
    manifest = tiny_manifest(graphs)
    manifest |= {"schema_version": "1.2", "model": {"name": "looking", "family": "test"}}
    manifest["prompt"] = prompt
    ways = {"resample": "bilinear", "rounding": "ceil", "resize_in": "float32"}
    manifest["geometry"] |= ways | geometry
    manifest["method"] |= {"single_blocks": 0, "feature_block": 0}
    manifest["noise"]["shape"] = [400, WIDTH]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _write_graphs(folder: Path, given: PromptRules) -> None:
    assert given.vision is not None
    rules = given.vision
    k = 3 * rules.frames * rules.patch_px**2
    image = tokenizer().token_to_id(rules.image_token)
    some = {"hundredth": np.float32(0.01), "last": np.array([2]), "axis_1": np.array([1])}
    write_graph(
        folder / "vision_encoder.onnx",
        f"(float[p, {k}] pixel_values, int64[p, 2] patch_positions)"
        " => (float[v, 3] image_embeds)",
        VISION_BODY,
        {"hundredth": some["hundredth"], "channels": np.array([-1, 3, k // 3]),
         "blocks": np.array([-1, rules.merge**2, 3])},
    )  # fmt: skip
    write_graph(
        folder / "text_encoder.onnx",
        "(int64[batch, s] input_ids, int64[batch, s] attention_mask, int64[batch, s] quoted_mask,"
        " int64[3, batch, s] position_ids, float[v, 3] image_embeds)"
        " => (float[batch, n_p, 3] prompt_embeds)",
        TEXT_BODY,
        {"table": table(), "image": np.array(image), "axis": np.array(1), "single": np.array(1),
         "none": np.array(0), "last": some["last"], "first": np.array([0]), "axes": AXES,
         "drop": np.array([given.drop]), "end": np.array([2**31]), "axis_1": some["axis_1"]},
    )  # fmt: skip
    write_vae_encoder(folder)
    write_graph(
        folder / "transformer.onnx",
        "(float[batch, n_v, 3] clean, float[1, n_v, 3] noise, float[batch, n_p, 3] embeds,"
        " float[batch, n_p] w, float[batch, n_p] mask, float[n_p, 3] placed,"
        " float[n_v, 2] positions) => (float[batch, 1, n_v] a, float[batch, 1, n_v] ta,"
        " float[batch, n_v, 3] features, float[batch, n_v, n_p] per_token)",
        TRANSFORMER_BODY,
        {**some, "light": LIGHT},
    )


AXES = np.array([0.01, 0.02, 0.03], np.float32).reshape(3, 1, 1)
LIGHT = np.array([0.1, -0.2, 0.3], np.float32)  # a column that counts shows, even where it is 0
WORDS = ["the green van", 'the "STOP" sign', "a van", "wow ! a", "the man's hat", "a hat"]
