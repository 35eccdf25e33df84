"""What a client of a model repository sends, taken from what the segmenter feeds its graphs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rism.runtime import Segmenter
from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines.base import Arrays
from rism.runtime.result.segmentation import Segmentation
from tests.export.triton.server import NUMPY, Server, schema
from tests.runtime.engines.cpu import cpu_engines
from tests.runtime.spies import Spy


def recorded(
    bundle: Bundle, picture: Any, expressions: Sequence[str], capture: str = "scores"
) -> tuple[list[Segmentation], dict[str, Spy], Segmenter]:
    """Segment, and keep what the graphs were fed and gave."""
    engines = {k: Spy(e) for k, e in cpu_engines(bundle, capture).items()}
    segmenter = Segmenter(bundle, engines, capture=capture)
    results = segmenter.segment(picture, list(expressions), paper=True)
    return results, {name.partition("@")[0]: e for name, e in engines.items() if e.fed}, segmenter


def request(server: Server, name: str, engines: Mapping[str, Spy]) -> dict[str, np.ndarray]:
    """What a client sends: of all that the segmenter fed, what the ensemble asks for."""
    fed = {k: v for engine in engines.values() for k, v in engine.fed[-1].items()}
    return {
        tensor.name: np.ascontiguousarray(
            fed[tensor.name], NUMPY[schema().DataType.Name(tensor.data_type)]
        )
        for tensor in server.configs[name].input
    }


def same(answer: Arrays, wanted: Arrays) -> None:
    for name, array in wanted.items():
        found = answer[name].reshape(array.shape)
        scale = max(float(np.abs(array).max()), 1e-6)
        np.testing.assert_allclose(found, array, atol=2e-4 * scale, rtol=0, err_msg=name)
