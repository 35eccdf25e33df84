"""Rounding to E4M3: NumPy, PyTorch and onnxruntime give the same bits."""

import numpy as np
import onnx
import onnx.parser
import pytest

from rism.calibration.e4m3 import (
    E4M3_MAX,
    channel_scales,
    quantised,
    quantised_weight,
    round_trip,
    weight_error,
)
from tests.calibration.conftest import run_fp8

torch = pytest.importorskip("torch")


def every_kind() -> np.ndarray:
    """All finite float32 numbers with 16 leading bits, and what lies just beside each."""
    bits = np.arange(2**16, dtype=np.uint32) << 16
    values = np.concatenate([bits, bits + 1, bits - 1]).astype(np.uint32).view(np.float32)
    return values[np.isfinite(values)]


def by_onnxruntime(values: np.ndarray, scale: float) -> np.ndarray:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]> g (float[n] x, float s) => (float[n] y) {
             q = QuantizeLinear<output_dtype = 17>(x, s)
             y = DequantizeLinear(q, s)
        }"""
    )
    return run_fp8(model.SerializeToString(), x=values, s=np.array(scale, np.float32))[0]


@pytest.mark.parametrize("scale", [1.0, 0.013, 3.7e-5])
def test_three_implementations_agree_bit_for_bit(scale: float) -> None:
    values = every_kind()
    with np.errstate(over="ignore"):
        values = values[np.isfinite(values / np.float32(scale))]
        ours = round_trip(values, scale)
    divided = torch.from_numpy(values / np.float32(scale)).clamp(-E4M3_MAX, E4M3_MAX)
    theirs = divided.to(torch.float8_e4m3fn).float().numpy() * np.float32(scale)
    assert np.array_equal(ours.view(np.uint32), theirs.view(np.uint32))
    assert np.array_equal(ours.view(np.uint32), by_onnxruntime(values, scale).view(np.uint32))


def test_saturation_ties_and_subnormals() -> None:
    # 17 is a tie between 16 and 18, rounded to the even mantissa; 2^-9 is the smallest number,
    # 2^-10 a tie between it and zero, 2^-6 the smallest normal number.
    values = [448.0, 449.0, -1e30, 17.0, 19.0, 2.0**-9, 2.0**-10, 3 * 2.0**-10, -(2.0**-6)]
    wanted = [448.0, 448.0, -448.0, 16.0, 20.0, 2.0**-9, 0.0, 2.0**-8, -(2.0**-6)]
    assert quantised(np.float32(values), 1.0).astype(np.float32).tolist() == wanted


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_have_a_scale_for_each_channel(axis: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((40, 24)).astype(np.float16)
    weight[:, 3] = 0
    weight[5] *= 100
    scales = channel_scales(weight, axis)
    largest = np.abs(weight).max(axis=1 - axis).astype(np.float32)
    assert scales.shape == (weight.shape[axis],)
    np.testing.assert_allclose(np.where(largest, scales * 448, 0), largest, rtol=1e-6)
    assert (scales > 0).all()
    spread = scales if axis == 1 else scales[:, None]
    kept = quantised_weight(weight, scales, axis).astype(np.float32) * spread
    wide = weight.astype(np.float32)
    error = np.sqrt(((kept - wide) ** 2).sum() / (wide**2).sum())
    assert weight_error(weight, scales, axis) == pytest.approx(error, rel=1e-5)
    assert 0 < error < 0.04
