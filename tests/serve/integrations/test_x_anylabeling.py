"""As X-AnyLabeling's remote_server.py asks and reads, and by the schema of its server."""

import base64
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from rism.runtime.segmenter import Segmenter
from tests.serve.conftest import Server, running


def _check_shape(shape: dict[str, Any]) -> None:
    """What app/schemas/shape.py of CVHub520/X-AnyLabeling-Server (70599dc) allows."""
    assert isinstance(shape["label"], str)
    assert shape["shape_type"] == "polygon"
    assert len(shape["points"]) >= 3
    assert all(isinstance(number, float) for point in shape["points"] for number in point)
    assert {len(point) for point in shape["points"]} == {2}
    assert shape["score"] is None or 0 <= shape["score"] <= 1
    assert shape["description"] is None or isinstance(shape["description"], str)


def _ask(server: Server, picture: bytes, text: object, **params: Any) -> Any:
    """Send what the client sends: always these parameters, whatever the model."""
    uri = "data:image/png;base64," + base64.b64encode(picture).decode()
    params = {"conf_threshold": 0.0, "iou_threshold": 0.0, "epsilon_factor": 0.001, **params}
    body = {"model": "rism", "image": uri, "params": {"text_prompt": text, **params}}
    return server.client.post("/v1/predict", json=body, headers={"Token": ""})


def _drawn(shapes: list[dict[str, Any]], size_wh: tuple[int, int]) -> np.ndarray:
    found = Image.new("1", size_wh)
    for shape in shapes:
        ImageDraw.Draw(found).polygon([(x - 0.5, y - 0.5) for x, y in shape["points"]], fill=1)
    return np.asarray(found)


def test_polygons_of_each_expression(
    server: Server, picture: bytes, loaded: Segmenter, colours: np.ndarray
) -> None:
    answer = _ask(server, picture, "green. the red").json()
    assert (answer["success"], answer["data"]["description"]) == (True, "")
    shapes = answer["data"]["shapes"]
    for shape in shapes:
        _check_shape(shape)
    results = loaded.segment(colours, ["green", "the red"])
    for result in results:
        own = [shape for shape in shapes if shape["label"] == result.expression]
        drawn = _drawn(own, result.size_wh)
        both, either = (drawn & result.mask).sum(), (drawn | result.mask).sum()
        assert both / either > 0.9
        assert {shape["score"] for shape in own} == {result.confidence}
    assert {shape["label"] for shape in shapes} == {"green", "the red"}


def test_the_model_that_is_offered(server: Server) -> None:
    answer = server.client.get("/v1/models").json()
    [(name, model)] = answer["data"].items()
    assert (answer["success"], name, model["batch_processing_mode"]) == (
        True,
        "rism",
        "text_prompt",
    )
    assert {"edit_text", "button_send"} <= {each["name"] for each in model["widgets"]}
    # Its confidence was never fitted: there is nothing to set.
    assert "edit_conf" not in {each["name"] for each in model["widgets"]}


def test_the_key_is_a_header_of_its_own(loaded: Segmenter) -> None:
    with running(loaded, api_key="s3cret") as server:
        assert server.client.get("/v1/models").status_code == 401
        assert server.client.get("/v1/models", headers={"Token": "s3cret"}).status_code == 200


@pytest.mark.parametrize(
    ("text", "params", "error"),
    [
        (" . ", {}, "there is no expression"),
        (3, {}, "text_prompt is '3'"),
        ("red", {"marks": [{"type": "rectangle"}]}, "marks"),
        ("red", {"conf_threshold": "much"}, "expected a number"),
        ("red", {"conf_threshold": 0.5}, "confidence was never fitted"),
    ],
)
def test_what_is_refused(
    server: Server, picture: bytes, text: object, params: dict[str, Any], error: str
) -> None:
    answer = _ask(server, picture, text, **params)
    assert answer.status_code == 422
    assert error in answer.json()["error"]


def test_another_model(server: Server) -> None:
    answer = server.client.post("/v1/predict", json={"model": "yolo", "image": ""})
    assert (answer.status_code, answer.json()["hint"]) == (404, "ask for rism")


def test_the_client_itself(
    server: Server, picture: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    config = pytest.importorskip(
        "anylabeling.config",
        reason="X-AnyLabeling is not installed: pip install x-anylabeling-cvhub (1.2 GB)",
    )
    config.set_work_directory(str(tmp_path))
    own = f"remote_server_settings: {{server_url: '{server.url}', api_key: ''}}\n"
    (tmp_path / "settings.yaml").write_text(own)
    monkeypatch.setattr(config, "current_config_file", str(tmp_path / "settings.yaml"))
    module = importlib.import_module("anylabeling.services.auto_labeling.remote_server")
    said: list[str] = []
    settings = {"type": "remote_server", "display_name": "rism", "timeout": 30}
    client = module.RemoteServer(settings, said.append)
    [model] = client.get_available_models()
    client.set_model_id(model)
    assert client.get_batch_processing_mode() == "text_prompt"
    (tmp_path / "a.png").write_bytes(picture)
    found = client.predict_shapes(object(), str(tmp_path / "a.png"), text_prompt="green. red.")
    assert not said
    assert {shape.label for shape in found.shapes} == {"green", "red"}
    assert all(shape.shape_type == "polygon" and len(shape.points) >= 3 for shape in found.shapes)
