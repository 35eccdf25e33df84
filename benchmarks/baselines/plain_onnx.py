"""Baseline: ONNX Runtime on a graph that none of our passes has seen.

Source: `torch.onnx.export(..., dynamo=True)` with its own optimiser, at the opset that it takes by
default, in which attention has no operator and comes out as products and a softmax; weights are
in the file. It is what whoever exports a model to ONNX has, before anyone looks at the graph.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

# PyTorch's default; Attention is an operator from 23 on.
OPSET = 18


def write_plain_graph(
    module: torch.nn.Module, feeds: Mapping[str, torch.Tensor], outputs: Sequence[str], file: Path
) -> None:
    """Export a module with its weights (beside the file), at the sizes of `feeds`."""
    before = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                kwargs=dict(feeds),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(feeds),
                output_names=list(outputs),
                verbose=False,
            )
    finally:
        logging.getLogger("torch.onnx").setLevel(before)
    assert program is not None
    program.save(str(file), external_data=True)
