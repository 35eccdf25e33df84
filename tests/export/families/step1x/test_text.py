"""Qwen2.5-VL's two halves, as they are traced, against transformers on pictures of many sizes."""

import numpy as np
import pytest

from tests.export.families.step1x.parity import TextComparison
from tests.export.families.step1x.small_model import VERSIONS, make_step1x, open_step1x

EXPRESSIONS = (
    "the green van",
    "the man's hat",
    'the sign "STOP!" there',
    "“two words” and more!",
    "the dog on the left of the woman, behind the red car",
)
# Of odd shapes, smaller than a token, and one of the largest, which has several windows.
SIZES = (
    *((16, 16), (28, 28), (96, 80), (112, 112), (113, 80), (64, 144), (208, 48)),
    *((32, 272), (500, 70), (160, 160)),
)


@pytest.fixture(scope="module", params=VERSIONS)
def comparison(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> TextComparison:
    folder = tmp_path_factory.mktemp("step1x") / "model"
    settings: dict[str, object] = {"max_sequence_length": 400}
    return TextComparison(open_step1x(make_step1x(folder, request.param, settings=settings)))


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size_wh", "expression"),
    [
        *((size_wh, EXPRESSIONS[0]) for size_wh in SIZES),
        *(((96, 64), expression) for expression in EXPRESSIONS),
    ],
)
def test_both_halves(comparison: TextComparison, size_wh: tuple[int, int], expression: str) -> None:
    found = comparison.differences(picture(*size_wh), expression)
    assert found["token ids"] == found["position ids"] == 0
    assert found["pixel patches"] < 1e-6
    assert found["vision states"] < 1e-5
    assert found["hidden states"] < 1e-5
