"""As Roboflow's documentation asks; read with supervision where that is installed."""

import base64
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from rism.runtime.result.rle import decode_rle
from rism.runtime.segmenter import Segmenter
from tests.serve.conftest import Server


def _ask(server: Server, picture: bytes, *texts: object, **more: Any) -> Any:
    body = {
        "image": {"type": "base64", "value": base64.b64encode(picture).decode()},
        "prompts": [{"type": "text", "text": text} for text in texts],
        **more,
    }
    return server.client.post("/sam3/concept_segment", json=body)


def test_polygons_through_pixels(
    server: Server, picture: bytes, loaded: Segmenter, colours: np.ndarray
) -> None:
    answer = _ask(server, picture, "green", "the red").json()
    assert answer["time"] > 0
    results = loaded.segment(colours, ["green", "the red"])
    for index, (found, result) in enumerate(zip(answer["prompt_results"], results, strict=True)):
        assert found["prompt_index"] == found["echo"]["prompt_index"] == index
        assert found["echo"]["text"] == result.expression
        [prediction] = found["predictions"]
        assert (prediction["format"], prediction["confidence"]) == ("polygon", result.confidence)
        drawn = Image.new("1", result.size_wh)
        for ring in prediction["masks"]:
            assert all(isinstance(number, int) for point in ring for number in point)
            assert all(result.mask[y, x] for x, y in ring)
            ImageDraw.Draw(drawn).polygon([(x, y) for x, y in ring], fill=1)
        same = np.asarray(drawn)
        assert (same & result.mask).sum() / (same | result.mask).sum() > 0.95


def test_rle_and_boxes(
    server: Server, picture: bytes, loaded: Segmenter, colours: np.ndarray
) -> None:
    answer = _ask(server, picture, "green", format="rle").json()
    result = loaded.segment(colours, "green")
    [[prediction]] = [each["predictions"] for each in answer["prompt_results"]]
    height, width = prediction["masks"]["size"]
    assert np.array_equal(decode_rle(prediction["masks"]["counts"], (height, width)), result.mask)
    [box] = answer["predictions"]
    corner = box["x"] - box["width"] / 2, box["y"] - box["height"] / 2
    assert (*corner, corner[0] + box["width"], corner[1] + box["height"]) == result.box_xyxy


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"prompts": []}, "there is no expression"),
        ({"prompts": ["a"]}, "prompts are not a list of objects"),
        ({"prompts": [{"text": "a", "boxes": [[0, 0, 1, 1]]}]}, "boxes or points"),
        ({"prompts": [{"type": "text"}]}, "an expression is 'None'"),
        ({"image": {"type": "url", "value": "http://127.0.0.1:1/"}}, "fetches nothing"),
        ({"image": {"type": "base64", "value": 3}}, "the image is not a file"),
        ({"format": "binary"}, "expected polygon or rle"),
        ({"output_prob_thresh": 0.5}, "confidence was never fitted"),
    ],
)
def test_what_is_refused(server: Server, picture: bytes, more: dict[str, Any], error: str) -> None:
    answer = _ask(server, picture, "green", **more)
    assert answer.status_code == 422
    assert error in answer.json()["error"]


def test_what_supervision_makes_of_it(
    server: Server, picture: bytes, loaded: Segmenter, colours: np.ndarray
) -> None:
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    answer = _ask(server, picture, "green", "the red").json()
    results = loaded.segment(colours, ["green", "the red"])
    found = supervision.Detections.from_inference(answer)
    assert list(found.data["class_name"]) == ["green", "the red"]
    assert list(found.class_id) == [0, 1]
    for box, mask, result in zip(found.xyxy, found.mask, results, strict=True):
        assert np.array_equal(mask, result.mask)
        assert tuple(box) == result.box_xyxy
    polygons = supervision.Detections.from_sam3(answer, resolution_wh=results[0].size_wh)
    assert list(polygons.class_id) == [0, 1]
    for mask, result in zip(polygons.mask, results, strict=True):
        assert (mask & result.mask).sum() / (mask | result.mask).sum() > 0.95
    empty = supervision.Detections.from_inference(_ask(server, picture, "nothing").json())
    assert len(empty) == 0
