"""From a PyTorch module without weights to an ONNX graph in memory."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import onnx_ir as ir
import torch

from rism.export.errors import ExportError
from rism.export.passes import (
    absorb_transposes,
    hidden_weights,
    name_dimensions,
    simplify,
    strip_metadata,
    write_out_group_normalization,
)
from rism.export.weightless import weightless
from rism.runtime.errors import one_line

__all__ = ["OPSET", "Input", "trace"]

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
            with weightless(module) as mode:
                with mode:
                    examples = {
                        name: torch.zeros(spec.shape, dtype=spec.dtype)
                        for name, spec in inputs.items()
                    }
                program = torch.onnx.export(
                    module,
                    kwargs=examples,
                    dynamo=True,
                    opset_version=OPSET,
                    dynamic_shapes=shapes,
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
