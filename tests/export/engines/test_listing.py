"""What a builder's list of layers says, and what it does not."""

from typing import Any

import pytest

from rism.export.engines.listing import (
    FUSED,
    EngineLayer,
    EngineTensor,
    LayerCheck,
    check_layers,
    parse_layer,
    unacceptable,
)
from rism.runtime.bundle.engine_spec import ShapeRange

LINE = (
    "[X] Name: to_q+to_k_myl0_4, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [-1,160], "
    "Strides: [160,1], StrideOrder: [1,0], Datatype: BFloat16, Format: (Linear) Row major } ], "
    "Constants: [ { Name: w, Dimensions: [160,480], Strides: [480,1], Datatype: FP8, Format: x }, "
    "{ Name: s, Dimensions: [], Strides: [], Datatype: Float, Format: x } ], Outputs: [ { Name: y, "
    "Dimensions: [-1,480], Strides: [480,1], StrideOrder: [1,0], Datatype: BFloat16, Format: x } ],"
    " TacticName: , StreamId: 0, Metadata: "
)
FREE = ShapeRange((1, 64, 128), (1, 256, 128), (8, 1024, 128))
FIXED = ShapeRange((1, 4096, 128), (1, 4096, 128), (1, 4096, 128))


# As TensorRT 9 printed it: https://github.com/NVIDIA/TensorRT/issues/3665.
OTHER_LINE = (
    "Name: out_matrix_multiply, LayerType: gemm, Inputs: [ { Name: a, Dimensions: [46080,25,25], "
    "Format/Datatype: Half }, { Name: b, Dimensions: [46080,25,64], Format/Datatype: Half }], "
    "Outputs: [ { Name: c, Dimensions: [46080,25,64], Format/Datatype: Half }], TacticName: "
    "sm80_xmma_gemm_f16f16_f16f16_f16_nn_n_tilesize32x32x64, StreamId: 1, Metadata: x"
)
SOFTMAX = "__myl_SlicReshMaxrSubExpSumDivMul_myl0_4"  # of TensorRT for RTX 1.7


def layer(name: str, kind: str, *outputs: tuple[int, ...], dtype: str = "Half") -> EngineLayer:
    made = tuple(EngineTensor(f"y{at}", dims, dtype) for at, dims in enumerate(outputs))
    return EngineLayer(name, kind, (EngineTensor("x", (1, 8), dtype),), (), made)


def answers(layers: list[EngineLayer], **facts: Any) -> dict[str, LayerCheck]:
    """Answers by question; an engine is of fp16, without attention, unless told."""
    plain = {"precision": "fp16", "attentions": 0, "quantised": 0, "written_out": 0, "tokens": None}
    return {check.question: check for check in check_layers(layers, **{**plain, **facts})}


def test_a_line_of_the_log_is_a_layer() -> None:
    assert parse_layer("[V] something else") is None
    found = parse_layer(LINE)
    assert found is not None
    assert (found.name, found.type) == ("to_q+to_k_myl0_4", "gemm")
    assert found.inputs == (EngineTensor("x", (-1, 160), "BFloat16"),)
    assert found.constants == (EngineTensor("w", (160, 480), "FP8"), EngineTensor("s", (), "Float"))
    assert found.outputs == (EngineTensor("y", (-1, 480), "BFloat16"),)
    other = parse_layer(OTHER_LINE)
    assert other is not None
    assert (other.name, other.type, other.constants) == ("out_matrix_multiply", "gemm", ())
    assert [tensor.dtype for tensor in (*other.inputs, *other.outputs)] == ["Half"] * 3
    assert other.tactic == "sm80_xmma_gemm_f16f16_f16f16_f16_nn_n_tilesize32x32x64"


@pytest.mark.parametrize(
    ("names", "outputs", "tokens", "answer", "detail"),
    [
        (["_gemm_mha_v2_myl0_16", "_gemv_mha_v1_myl0_2"], [], None, "yes", "2 fused kernels for 2"),
        (["__mye8037_fused_mha_v2", "sm90_fmha_v2_flash"], [], None, "yes", "2 fused kernels"),
        # Names of nodes are no evidence, and no names no evidence against it.
        (["/mha/out/MatMul", "attn.mha.to_q"], [], None, "unknown", "0 fused kernels for 2"),
        (["_gemm_mha_v2", "kernel"], [], None, "unknown", "1 fused kernels for 2"),
        (["_gemm_mha_v2", SOFTMAX], [], None, "no", "1 fused kernels for 2 attentions, and 1 la"),
        (["a", "blocks.1/Softmax"], [], FREE, "no", "1 layers of softmax alone"),
        # Attention that is not fused passes its scores from layer to layer.
        (["a", "b"], [(-1, -1, 64)], FREE, "yes", "nothing of N x N passes between layers"),
        (["a", "b"], [(8, -1, -1)], FREE, "no", "and 2 of [8, -1, -1] Half between layers"),
        (["a", "b"], [(1, 32, 4096, 8704)], FIXED, "no", "[1, 32, 4096, 8704] Half between"),
        (["a", "b"], [(1, 4096, 4096)], FIXED, "unknown", "by name, which no maker guarantees"),
        (["a", "{ForeignNode[a...b]}"], [(-1, -1, 64)], FREE, "unknown", "by name, which no maker"),
    ],
)
def test_attention_is_fused_by_name_or_by_what_passes_between_layers(
    names: list[str],
    outputs: list[tuple[int, ...]],
    tokens: ShapeRange | None,
    answer: str,
    detail: str,
) -> None:
    layers = [layer(name, "kgen", *outputs) for name in names]
    found = answers(layers, attentions=2, tokens=tokens)["attention fused"]
    assert found.answer == answer
    assert detail in found.detail


def test_a_kernel_may_be_named_as_a_tactic_alone() -> None:
    tactics = ("_gemm_mha_v2_0x65", "x")
    layers = [EngineLayer("node", "kgen", (), (), (), tactic) for tactic in tactics]
    assert answers(layers, attentions=1)["attention fused"].answer == "yes"
    assert answers(layers, attentions=2)["attention fused"].answer == "unknown"


def test_a_softmax_of_what_is_written_out_is_no_evidence() -> None:
    layers = [layer("_gemm_mha_v2", "kgen"), layer(SOFTMAX, "kgen", (5, -1, -1))]
    found = answers(layers, attentions=2, written_out=1, tokens=FREE)
    assert found["attention fused"].answer == "unknown"


def test_regions_whose_layers_are_not_listed_hide_what_passes_in_them() -> None:
    found = answers([layer("{ForeignNode[a...b]}", "Myelin", (1, 7))], tokens=FREE)
    assert found["no N_v x N tensor"].answer == "unknown"


def test_products_tell_the_precision() -> None:
    layers = [layer("a", "gemm", dtype="BFloat16"), layer("b", "runtime_fusion", dtype="Float")]
    assert answers(layers, precision="bf16")["precision used"].answer == "yes"
    assert answers(layers, precision="fp16")["precision used"].answer == "no"
    for precision in ("fp16", "fp8"):
        found = answers([layer("a", "kgen")], precision=precision, quantised=1)
        assert found["precision used"].answer == "unknown"


@pytest.mark.parametrize(
    ("written_out", "detail"), [(3, "written out: 3"), (0, "the graph has none")]
)
def test_without_attention_for_the_library_none_is_called_fused(
    written_out: int, detail: str
) -> None:
    found = answers([layer("a", "gemm")], written_out=written_out)["attention fused"]
    assert (found.answer, found.detail) == ("not in this form", detail)


def test_fp8_is_used_where_every_quantised_product_is() -> None:
    layers = [layer("a+b_myl0", "gemm", dtype="FP8"), layer("c", "gemm", dtype="Half")]
    assert answers(layers, precision="fp8", quantised=2)["precision used"].answer == "yes"
    assert answers(layers, precision="fp8", quantised=3)["precision used"].answer == "no"
    merged = parse_layer(LINE)
    assert merged is not None
    assert answers([merged], precision="fp8", quantised=2)["precision used"].answer == "yes"


@pytest.mark.parametrize(
    ("tokens", "dims", "answer"),
    [
        (FREE, (5, -1, -1), "no"),
        (FREE, (-1, 5, -1, -1), "no"),
        (FREE, (-1, 8, -1), "yes"),  # a_l: batch, blocks, tokens
        (FREE, (-1, -1), "yes"),  # scores: batch, tokens
        (FREE, (-1, -1, 160), "yes"),
        (FIXED, (1, 32, 4096, 8704), "no"),
        (FIXED, (32, 4096, 4096), "no"),
        (FIXED, (1, 4096, 3072), "yes"),
        (FIXED, (1, 8704, 12288), "yes"),
        (FIXED, (1, 32, 4096, 128), "yes"),
        (FIXED, (1, 4096, 4096), "unknown"),  # as many tokens as channels
    ],
)
def test_matrices_of_tokens_by_tokens_are_found(
    tokens: ShapeRange, dims: tuple[int, ...], answer: str
) -> None:
    found = answers([layer("a", "kgen", dims, (1, 7))], tokens=tokens)["no N_v x N tensor"]
    assert found.answer == answer
    assert (str(list(dims)) in found.detail) == (answer != "yes")


def test_a_form_that_has_them_by_its_nature_says_so() -> None:
    found = answers([layer("a", "kgen", (5, -1, -1))], written_out=2, tokens=FREE)
    assert found["no N_v x N tensor"].answer == "not in this form"


def test_nothing_is_assumed_where_nothing_is_listed() -> None:
    found = answers([], attentions=1, tokens=FREE)
    assert {check.answer for check in found.values()} == {"unknown"}


def test_an_encoder_may_have_its_attention_written_out() -> None:
    checks = [LayerCheck(FUSED, "no", "0 of 1"), LayerCheck("precision used", "yes", "")]
    assert unacceptable("vae_encoder", checks) == []
    assert unacceptable("transformer.vectors@512x512", checks) == checks[:1]
    assert unacceptable("vae_encoder", [LayerCheck("precision used", "no", "in Float")])
