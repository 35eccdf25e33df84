"""The form of a graph for CPUs: fewer and larger operators, attention on every core.

It stands beside the graph that GPUs and engines take, on the same weights, and has the same
inputs and outputs. GPUs keep the other: their fused kernels store no matrix of attention.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.rewriter.onnx_fusions import fuse
from onnxscript.rewriter.pattern import RewriteRule


def cpu_form(file: str) -> str:
    """Return the name of a graph's form for CPUs: vae_encoder.cpu.onnx."""
    return f"{file.removesuffix('.onnx')}.cpu.onnx"


def fit_cpu(model: ir.Model, *, parts: int = 1) -> None:
    """Bring a graph into the form for CPUs.

    Needs: types and shapes, float32. Leaves: the same computation; norms written out as one
    operator, scale and bias of channels in one pass over an image, and an attention with a single
    head as one of several heads that share its keys: ONNX Runtime gives a head to a thread.

    Args:
        model: changed in place.
        parts: heads that a single head becomes; a divisor of the number of its queries.
    """
    fuse(model)
    RewriteRule(_scale_and_bias, _in_one_pass, _is_of_channels).apply_to_model(model)
    if parts > 1:

        def split(op: Any, q: ir.Value, k: ir.Value, v: ir.Value, out: ir.Value) -> Any:
            node, shape = out.producer(), q.shape
            assert node is not None
            assert shape is not None
            given = {name: each.value for name, each in node.attributes.items()}
            heads = op.Reshape(q, op.Constant(value_ints=[0, parts, -1, shape[3]]))
            read = op.Attention(heads, k, v, **given)
            return op.Reshape(read, op.Constant(value_ints=[0, 1, -1, shape[3]]))

        RewriteRule(_attention, split, _has_one_head).apply_to_model(model)
    common.RemoveUnusedNodesPass()(model)


def _scale_and_bias(
    op: Any, x: Any, scale: Any, bias: Any, scale_shape: Any, bias_shape: Any
) -> Any:
    factor = op.Reshape(scale, scale_shape, _outputs=["factor"])
    return op.Add(op.Mul(x, factor), op.Reshape(bias, bias_shape))


def _is_of_channels(
    _context: object, x: ir.Value, scale: ir.Value, bias: ir.Value, factor: ir.Value, **_: object
) -> bool:
    """Tell whether (C,) weights are spread over (B, C, ...)."""
    if x.shape is None or scale.shape is None or factor.shape is None:
        return False
    spread = [*scale.shape, *[1] * (len(x.shape) - 2)]
    return scale.is_initializer() and bias.is_initializer() and list(factor.shape) == spread


def _in_one_pass(op: Any, x: ir.Value, scale: ir.Value, bias: ir.Value, **_: object) -> Any:
    """Write a batch normalisation whose mean is 0 and variance 1."""
    assert scale.shape is not None
    channels = scale.shape.numpy()
    mean, variance = (
        op.Constant(value=ir.tensor(np.full(channels, value, np.float32))) for value in (0, 1)
    )
    return op.BatchNormalization(x, scale, bias, mean, variance, epsilon=0.0)


def _attention(op: Any, q: Any, k: Any, v: Any) -> Any:
    return op.Attention(q, k, v, _allow_other_attributes=True, _outputs=["out"])


def _has_one_head(_context: object, q: ir.Value, **_: object) -> bool:
    return q.shape is not None and q.shape[1] == 1 and isinstance(q.shape[3], int)
