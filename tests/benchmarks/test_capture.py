"""Transformers of random weights: variants agree, nothing is left out, arithmetic is counted."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from benchmarks.__main__ import QUICK
from benchmarks.capture import pytorch
from benchmarks.capture.models import CaptureCase, RandomModel, count_flop
from benchmarks.capture.variants import BASELINE, VARIANTS
from benchmarks.config import read_config
from benchmarks.rooflines.probe_bounds import SHAPES
from benchmarks.rooflines.stages import KLEIN_4B, STEP1X, Transformer
from benchmarks.run import run_here
from rism.export.precision import PRECISIONS
from rism.runtime.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")
MODELS = ("tiny", "tiny-step1x")


@pytest.mark.parametrize(
    ("size", "engines"),
    [("tiny", ["torch", "compile", "onnxruntime"]), ("tiny-step1x", ["torch", "onnxruntime"])],
)
def test_every_engine_finds_what_the_paper_does(size: str, engines: list[str]) -> None:
    """Compiled by PyTorch's own stand-in, without a C++ compiler."""
    variants = [BASELINE, "vectors"] if size == "tiny" else ["vectors"]
    parameters = {
        "cases": [f"{size}@64"],
        "engines": engines,
        "variants": variants,
        "reference": "paper",
        "compile_backend": "eager",
        "tolerance": 1e-5,
    }
    [scenario] = [each for each in read_config(QUICK) if each.name == "dit-capture"]
    parameters = {**scenario.parameters, **parameters}
    scenario = replace(scenario, baseline="torch: vectors", parameters=parameters)
    rows = run_here(replace(scenario, runs=1, warm_up=0))["rows"]
    assert [(row["row"], row.get("reason")) for row in rows] == [
        (f"{engine}: {variant}", None) for engine in engines for variant in variants
    ]
    assert all(row["device_bytes"] is None for row in rows)  # of a CPU it is not known


@pytest.mark.parametrize("size", MODELS)
def test_variants_agree_on_uneven_weights(size: str) -> None:
    model = RandomModel(CaptureCase(size, 64), PRECISIONS["fp32"], "cpu")
    model.feeds["prompt_weights"] = torch.rand(1, 32, generator=torch.Generator().manual_seed(1))
    wanted = pytorch.outputs_of(model, VARIANTS["paper"])
    for name in VARIANTS.keys() - {BASELINE, "paper"}:
        found = pytorch.outputs_of(model, VARIANTS[name])
        for output, value in wanted.items():
            torch.testing.assert_close(
                torch.from_numpy(found[output]), torch.from_numpy(value), rtol=1e-4, atol=1e-6,
                msg=lambda text, name=name: f"{name}: {text}",
            )  # fmt: skip


@pytest.mark.parametrize(
    ("size", "keys"), [("tiny", "last.to_k"), ("tiny-step1x", "last_attn.to_k")]
)
def test_the_baseline_runs_every_block(size: str, keys: str) -> None:
    """Features come from a middle block; a change of the last one must reach the output."""
    model = RandomModel(CaptureCase(size, 64), PRECISIONS["fp32"], "cpu")
    before = pytorch.outputs_of(model, VARIANTS[BASELINE])
    with torch.no_grad():
        model.step.get_parameter(f"{keys}.weight").mul_(0.5).add_(0.1)
    after = pytorch.outputs_of(model, VARIANTS[BASELINE])
    assert (before["features"] == after["features"]).all()
    assert (before["last"] != after["last"]).any()


@pytest.mark.parametrize("size", MODELS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_nothing_is_left_on_the_host(precision: str, size: str) -> None:
    """PyTorch's device without storage refuses to be mixed with the CPU, as a GPU does."""
    model = RandomModel(CaptureCase(size, 64), PRECISIONS[precision], "cpu")
    matrices = [value for value in model.step.parameters() if value.ndim > 1]
    assert {value.dtype for value in matrices} == {PRECISIONS[precision].compute}
    model.step.to("meta")
    feeds = {name: value.to("meta") for name, value in model.feeds.items()}
    for variant in VARIANTS.values():
        with torch.no_grad():
            found = model.module(variant)(**feeds)
        assert {value.device.type for value in found} == {"meta"}


def test_padding_is_zeros_behind_a_mask() -> None:
    case = CaptureCase.parse("tiny-step1x@64")
    feeds = RandomModel(case, PRECISIONS["fp32"], "cpu").feeds
    assert feeds["prompt_mask"].tolist() == [[1.0] * 18 + [0.0] * 14]
    embeds = feeds["prompt_embeds"][0]
    assert (embeds[:18] != 0).all() and (embeds[18:] == 0).all()
    assert feeds["prompt_weights"].sum() == 32  # the paper counts padding, too
    assert case.spec().prompt_mask and not CaptureCase("tiny", 64).spec().prompt_mask


@cache
def flop(case: str, variant: str = BASELINE) -> int:
    return count_flop(CaptureCase.parse(case), VARIANTS[variant], PRECISIONS["bf16"])


def test_arithmetic_of_step1x_is_counted_whole() -> None:
    """The published size by hand: widths, tokens, then every product, each of 2 m n k."""
    d, c, h = 3072, 4096, 3584
    prompt, image = 640, 32 * 32
    n = prompt + 2 * image
    connector = prompt * h * c + h * c + c * c
    connector += 2 * (prompt * 12 * c * c + 2 * c * c + 2 * prompt * prompt * c)
    begin = 2 * image * 64 * d + prompt * c * d
    double = n * 12 * d * d + 2 * n * n * d
    single = n * 12 * d * d + 2 * n * n * d
    last = (image + n) * d * d
    wanted = 2 * (connector + begin + 19 * double + 37 * single + last)
    found = flop("step1x-1.0@512")
    assert found == wanted == SHAPES["step1x-1.0@512"].flop
    assert 39.7e12 < found < flop("step1x-1.0@512", "vectors") < 1.07 * wanted


@pytest.mark.parametrize(
    ("case", "d", "text", "blocks", "image"),
    [("4b@512", 3072, 7680, 25, 32 * 32), ("9b@1024", 4096, 12288, 32, 64 * 64)],
)
def test_arithmetic_of_klein_is_counted_whole(
    case: str, d: int, text: int, blocks: int, image: int
) -> None:
    n = 512 + 2 * image
    block = n * (4 + 9) * d * d + 2 * n * n * d  # the MLP: into two parts of 3 d, and back
    begin = 2 * image * 128 * d + 512 * text * d
    wanted = 2 * (begin + (blocks - 1) * block + (image + n) * d * d)
    assert flop(case) == wanted
    assert case not in SHAPES or SHAPES[case].flop == wanted


@pytest.mark.parametrize(("case", "model"), [("4b@512", KLEIN_4B), ("step1x-1.0@512", STEP1X)])
def test_formulas_of_the_stages_are_what_the_modules_do(case: str, model: Transformer) -> None:
    plain, clean = flop(case), 1024
    formula = model.products(clean) + model.attention(clean)
    # The last block of a model without capture runs to its queries and keys.
    assert (1 - 1 / model.blocks) * formula < plain < 1.005 * formula
    probes = flop(case, "vectors") - plain
    assert probes == pytest.approx(model.two_attentions(clean), rel=0.02)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5b@512", r"'5b@512' is not known, expected one of tiny, .*4b, 9b, tiny-step1x, step1x-"),
        ("4b", "such as 4b@512"),
        ("4b@500", "expected a multiple of 16"),
    ],
)
def test_models_that_are_not_known(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CaptureCase.parse(text)
