"""From a PyTorch module to an ONNX graph in memory."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import onnx_ir as ir
import torch

from rism.export.errors import ExportError
from rism.export.passes import name_dimensions, strip_metadata
from rism.runtime.errors import one_line

__all__ = ["OPSET", "trace"]

# Attention became an operator in 23: with it no graph of ours holds an N_v x N matrix.
OPSET = 23


def trace(
    module: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    *,
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]],
) -> ir.Model:
    """Trace `module` and give its tensors their logical names.

    Args:
        module: called with `inputs` as keyword arguments.
        inputs: example tensors by logical name, in the order of the graph's inputs.
        outputs: logical names of what `module` returns.
        dynamic: for each input, its free dimensions and their names; one name is one size. For
            an output, names of dimensions that are computed from several.

    Raises:
        ExportError: torch could not trace the module.
    """
    shapes = {
        name: dict.fromkeys(dynamic.get(name, {}), torch.export.Dim.DYNAMIC) for name in inputs
    }
    try:
        with _quiet("torch.onnx", "onnxscript"), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                kwargs=dict(inputs),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=shapes,
                input_names=list(inputs),
                output_names=list(outputs),
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # torch.export has no common base for its failures
        raise ExportError(f"{type(module).__name__} cannot be traced: {one_line(error)}") from error
    assert program is not None
    model = program.model
    name_dimensions(model, dynamic)
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
