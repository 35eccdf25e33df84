"""From a PyTorch module without weights to an ONNX graph in memory."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

from rism.export.checkpoint.meta_modules import weightless
from rism.export.errors import ExportError
from rism.export.graph.passes import (
    absorb_transposes,
    hidden_weights,
    name_dimensions,
    simplify,
    strip_metadata,
    write_out_group_normalization,
)
from rism.runtime.errors import one_line

# Attention became an operator in 23: with it no graph of ours holds an N_v x N matrix.
OPSET = 23


@dataclass(frozen=True)
class Input:
    """One input of a graph.

    Attributes:
        shape: of the example that is traced.
        dynamic: its free dimensions and their names; one name is one size.
        dtype: of the tensor.
    """

    shape: tuple[int, ...]
    dynamic: Mapping[int, str]
    dtype: torch.dtype = torch.float32


def trace(
    module: torch.nn.Module,
    inputs: Mapping[str, Input],
    *,
    outputs: Sequence[str],
    named_outputs: Mapping[str, Mapping[int, str]] | None = None,
) -> ir.Model:
    """Trace `module` and give its tensors their logical names.

    Args:
        module: called with `inputs` as keyword arguments; its parameters need no values.
        inputs: by logical name, in the order of the graph's inputs.
        outputs: logical names of what `module` returns.
        named_outputs: names of dimensions of outputs that are computed from several.

    Returns:
        A graph whose initializers have the names of the module's parameters, and no values;
        those that it holds transposed say so in `meta["transposed"]`. Buffers have values.

    Raises:
        ExportError: torch could not trace the module.
    """
    shapes = {
        name: dict.fromkeys(spec.dynamic, torch.export.Dim.DYNAMIC) for name, spec in inputs.items()
    }
    known = {
        name: ir.tensor(buffer.detach().numpy())
        for name, buffer in module.named_buffers()
        if not buffer.is_meta and buffer.dtype != torch.bfloat16
    }
    try:
        with _quiet("torch.onnx", "onnxscript"), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            with weightless(module) as mode, _rare_collections():
                with mode:
                    examples = {
                        name: torch.zeros(spec.shape, dtype=spec.dtype)
                        for name, spec in inputs.items()
                    }
                exported = torch.export.export(module, (), examples, dynamic_shapes=shapes)
                _plain_operators(exported)
                _decompose_where_needed(exported)
                program = torch.onnx.export(
                    exported,
                    dynamo=True,
                    opset_version=OPSET,
                    input_names=list(inputs),
                    output_names=list(outputs),
                    optimize=False,
                    verbose=False,
                )
            assert program is not None
            with hidden_weights(program.model, known):
                write_out_group_normalization(program.model)
                simplify(program.model)
    except Exception as error:  # torch.export has no common base for its failures
        raise ExportError(f"{type(module).__name__} cannot be traced: {one_line(error)}") from error
    model = program.model
    absorb_transposes(model)
    name_dimensions(
        model, {name: spec.dynamic for name, spec in inputs.items()} | dict(named_outputs or {})
    )
    strip_metadata(model)
    return model


def _plain_operators(exported: torch.export.ExportedProgram) -> None:
    """Write operators that torch.onnx does not know with others, which it does.

    Casts to the type that a tensor has, and the checks that torch.export adds to casts, go: they
    are half of a float32 graph, and none of them reaches the ONNX graph.
    """
    ops = torch.ops.aten
    others = {ops.__and__.Tensor: ops.bitwise_and.Tensor, ops.__or__.Tensor: ops.bitwise_or.Tensor}
    graph = exported.graph
    for node in list(graph.nodes):
        if node.target is ops._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.target is ops.to.dtype and len(node.args) == 2 and not node.kwargs:
            source, dtype = node.args
            if source.meta["val"].dtype == dtype:
                node.replace_all_uses_with(source)
                exported.graph_signature.replace_all_uses(node.name, source.name)
                graph.erase_node(node)
            else:
                node.target, node.args = ops._to_copy.default, (source,)
                node.kwargs = {"dtype": dtype}
        elif node.target is ops.rsub.Scalar and len(node.args) == 2:
            with graph.inserting_before(node):
                negative = graph.call_function(ops.neg.default, node.args[:1])
            negative.meta = dict(node.meta)
            node.target, node.args = ops.add.Tensor, (negative, node.args[1])
        elif node.target is ops.square.default:
            node.target, node.args = ops.pow.Tensor_Scalar, (*node.args, 2)
        elif node.target in others:
            node.target = others[node.target]


def _decompose_where_needed(exported: torch.export.ExportedProgram) -> None:
    """Let torch.onnx decompose a graph only where it has an operator to be decomposed.

    It would otherwise trace the graph twice more, which is half of the time that a trace takes.
    """
    decompose = exported.run_decompositions

    def where_needed(table: dict[Any, Any]) -> torch.export.ExportedProgram:
        needed = any(node.target in table for node in exported.graph.nodes)
        return decompose(table) if needed else exported

    exported.run_decompositions = where_needed


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Look for garbage in cycles less often: a trace makes millions of objects and keeps them."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Hold back the libraries' progress notes; what goes wrong is raised, not logged."""
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
