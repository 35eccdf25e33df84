"""Rounding to NVFP4: bit for bit as defined, by ONNX's reference, and in an engine's graph."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from rism.calibration.kept_layers import kept_layers
from rism.calibration.layers import find_layers
from rism.calibration.nvfp4 import BLOCK, quantised_weight, round_trip, tensor_scale_of
from rism.calibration.nvfp4_graph import emulate_nvfp4, quantise_nvfp4
from rism.runtime import InputError
from tests.calibration.conftest import run_fp8, scales_of
from tests.calibration.test_qdq import FF, N, Q, graph

K = 48
E2M1 = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6])
# Every finite E4M3 number of no sign, in the order of its codes.
E4M3 = np.float32(
    [m / 8 * 2.0**-6 for m in range(8)]
    + [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)][:-1]
)


def nearest(values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The nearest of some numbers, of two as near the one of an even place; beyond: the last."""
    distances = np.abs(np.abs(values)[..., None].astype(np.float64) - numbers)
    ties = distances == distances.min(axis=-1, keepdims=True)
    odd = np.arange(len(numbers)) % 2
    place = np.argmin(np.where(ties, odd, 2), axis=-1)
    return np.copysign(numbers[place], values)


def by_definition(blocks: np.ndarray, scale: np.float32, target: float) -> np.ndarray:
    """Blocks (..., 16) in float32 as the field defines NVFP4: e s g."""
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    wide = nearest(np.minimum(largest / np.float32(target) / scale, 448), E4M3) * scale
    with np.errstate(all="ignore"):
        divided = np.where(wide > 0, blocks / wide, 0).astype(np.float32)
    return nearest(divided, E2M1) * wide


def kinds() -> np.ndarray:
    """Blocks of many magnitudes, with zeros and exact ties among them."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, 3, BLOCK)) * 10 ** rng.uniform(-7, 1, (400, 3, 1))
    rows[0], rows[1, 0] = 0, 0
    rows[2:10] = rng.choice(np.arange(0, 13) / 4, (8, 3, BLOCK))  # a quarter is half of a step
    rows[2:10, :, 0] = 6
    return rows.astype(np.float32)


def test_activations_are_rounded_as_defined() -> None:
    blocks = kinds()
    scale = tensor_scale_of(float(np.abs(blocks).max()) / 3)  # the largest blocks are cut off
    found = round_trip(blocks.reshape(400, K), scale)
    wanted = by_definition(blocks, scale, 6.0).reshape(400, K)
    assert np.array_equal(found.view(np.uint32), wanted.view(np.uint32))
    assert np.unique(np.sign(found)).tolist() == [-1, 0, 1]


@pytest.mark.parametrize("axis", [0, 1])
def test_a_block_of_a_weight_has_the_better_of_two_scales(axis: int) -> None:
    blocks = kinds()
    rows = blocks.reshape(400, K)
    found = quantised_weight(rows if axis == 1 else rows.T, axis)
    scale = tensor_scale_of(float(np.abs(blocks).max()))
    assert found.tensor_scale == scale
    both = [by_definition(blocks, scale, target) for target in (6.0, 4.0)]
    errors = [np.square(each - blocks).sum(axis=-1, keepdims=True) for each in both]
    wanted = np.where(errors[1] < errors[0], both[1], both[0]).reshape(400, K)
    made = found.values(np.float32)
    assert np.array_equal(made if axis == 1 else made.T, wanted)
    assert 0.2 < (errors[1] < errors[0]).mean() < 0.8, "either scale is the better one of many"


@pytest.mark.parametrize("kind", ["float", "float16"])
def test_the_graph_of_an_engine(kind: str, tmp_path: Path) -> None:
    model, plain = graph(kind, width=K), graph(kind, width=K)
    assert quantise_nvfp4(model, tmp_path / "e2m1.weights") == 2
    x = np.random.default_rng(1).standard_normal((2, 7, K)).astype(np.float32)
    x = x.astype(np.float16 if kind == "float16" else np.float32)
    ir.save(model, tmp_path / "graph.onnx")
    found = ReferenceEvaluator(str(tmp_path / "graph.onnx")).run(None, {"x": x})
    for layer, made in zip(find_layers(plain), found, strict=True):
        weight = np.asarray(layer.weight.const_value)
        if layer.name in (Q, FF):
            weight = quantised_weight(weight, 0).values(x.dtype)
        np.testing.assert_allclose(made, np.matmul(x, weight), rtol=2e-3, atol=2e-3)
    parts = {each.name or "": each.const_value for each in model.graph.initializers.values()}
    nbytes = {name: part.nbytes for name, part in parts.items() if part is not None}
    assert nbytes[f"{Q}.weight.e2m1"] == K * N // 2
    assert nbytes[f"{Q}.weight.block_scales"] == K * N // BLOCK


def test_emulated_activations_are_those_of_an_engine() -> None:
    model = graph("float", width=K)
    scales = scales_of(model)
    x = kinds().reshape(1, 400, K)
    plain = {layer.name: layer for layer in find_layers(graph("float", width=K))}
    emulate_nvfp4(model, scales)
    found = run_fp8(ir.to_proto(model).SerializeToString(), x=x)
    rounded = round_trip(x, np.float32(scales.layers[Q] / 6))
    for name, made in zip((Q, FF), found, strict=False):
        weight = quantised_weight(np.asarray(plain[name].weight.const_value), 0).values(np.float32)
        np.testing.assert_allclose(made, rounded @ weight, rtol=1e-4, atol=1e-5)


def test_activations_take_turns_in_one_operator(tmp_path: Path) -> None:
    model = graph("float16", width=K)
    assert quantise_nvfp4(model, tmp_path / "e2m1.weights", scales_of(model)) == 2
    operators = [node.op_type for node in model.graph]
    assert operators.count("TRT_FP4DynamicQuantize") == 1, "both products read one tensor"
    assert operators.count("DequantizeLinear") == 2 + 2 * 2
    kept = kept_layers([layer.name for layer in find_layers(graph("float16", width=K))])
    assert [layer.name for layer in find_layers(model)] == list(kept)


def test_what_has_no_blocks_stays_and_old_graphs_are_refused(tmp_path: Path) -> None:
    assert quantise_nvfp4(graph("float16", width=24), tmp_path / "a") == 0
    with pytest.raises(InputError, match="of opset 21, expected 23 or later for NVFP4"):
        quantise_nvfp4(graph("float16", opset=21, width=K), tmp_path / "b")
