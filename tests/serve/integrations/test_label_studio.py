"""As Label Studio asks an ML backend, read with label-studio-sdk where that is installed."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw

from rism.runtime.result.formats.brush_rle import encode_brush_rle
from rism.runtime.segmenter import Segmenter
from tests.cli.conftest import invoke
from tests.serve.conftest import Server, running

CONFIG = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image">
    <Label value="thing"/><Label value="green"/>
  </BrushLabels>
  <PolygonLabels name="polygon" toName="image"><Label value="thing"/></PolygonLabels>
  <TextArea name="text" toName="image"/>
  <Choices name="choice" toName="image"><Choice value="blue"/></Choices>
</View>"""


@pytest.fixture
def task(picture: bytes) -> dict[str, Any]:
    uri = "data:image/png;base64," + base64.b64encode(picture).decode()
    return {"id": 1, "data": {"image": uri, "wanted": "red"}}


def _predict(
    server: Server, config: str, *tasks: dict[str, Any], text: str | None = None
) -> httpx.Response:
    """Ask as label_studio/ml/api_connector.py does; with a text as while somebody labels."""
    region = {"id": "a", "type": "textarea", "from_name": "text", "value": {"text": [text]}}
    context = None if text is None else {"result": [region]}
    body = {
        "tasks": tasks, "model_version": "", "project": "1.1700000000", "label_config": config,
        "params": {"login": None, "password": None, "context": context},
    }  # fmt: skip
    return server.client.post("/predict", json=body)


def _decoded(rle: list[int], shape: tuple[int, int]) -> np.ndarray:
    """Read @thi.ng/rle-pack, bit by bit."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    at = 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        run, count = take(1), take(sizes[take(2)]) + 1
        values += [take(word)] * count if run else [take(word) for _ in range(count)]
    return np.array(values, np.uint8).reshape(*shape, 4)


def test_a_mask_in_both_forms(
    server: Server, task: dict[str, Any], loaded: Segmenter, colours: np.ndarray
) -> None:
    [prediction] = _predict(server, CONFIG, task, text="green").json()["results"]
    result = loaded.segment(colours, "green")
    brush, *rings = prediction["result"]
    assert (brush["type"], brush["from_name"]) == ("brushlabels", "brush")
    assert brush["value"]["brushlabels"] == ["green"]  # of the same name
    height, width = result.mask_hw.shape
    assert (brush["original_width"], brush["original_height"]) == (width, height)
    decoded = _decoded(brush["value"]["rle"], (height, width))
    assert np.array_equal(decoded, np.repeat(result.mask[..., None], 4, axis=2) * 255)
    drawn = Image.new("1", (width, height))
    for ring in rings:
        assert (ring["type"], ring["value"]["polygonlabels"]) == ("polygonlabels", ["thing"])
        points = np.array(ring["value"]["points"]) / 100 * (width, height) - 0.5
        ImageDraw.Draw(drawn).polygon([(x, y) for x, y in points], fill=1)
    both, either = np.asarray(drawn) & result.mask, np.asarray(drawn) | result.mask
    assert both.sum() / either.sum() > 0.9


@pytest.mark.parametrize(
    ("controls", "expressions"),
    [
        ('<TextArea name="t" toName="image" value="$wanted"/>', ["red"]),
        ('<TextArea name="t" toName="image"/>', []),  # nothing is typed yet
        ('<TextArea name="t" toName="image" perRegion="true"/>', ["green"]),
        ('<Choices name="c" toName="image"><Choice value="red"/><Choice value="blue"/></Choices>',
         ["red", "blue"]),
        ('<Choices name="c" toName="image" value="$options"/>', ["blue"]),
        ("", ["green"]),
    ],
)  # fmt: skip
def test_what_is_asked_before_anybody_labels(
    server: Server, task: dict[str, Any], controls: str, expressions: list[str]
) -> None:
    config = (
        '<View><Image name="image" value="$image"/><BrushLabels name="b" toName="image">'
        f'<Label value="green"/></BrushLabels>{controls}</View>'
    )
    task["data"]["options"] = [{"value": "blue"}]
    [prediction] = _predict(server, config, task).json()["results"]
    assert [each["meta"]["text"] for each in prediction["result"]] == [[x] for x in expressions]


def test_what_is_chosen(server: Server, task: dict[str, Any]) -> None:
    region = {"type": "choices", "from_name": "choice", "value": {"choices": ["blue"]}}
    context = {"result": [region, {"from_name": "brush", "value": {"rle": [1]}}]}
    body = {"tasks": [task, task], "label_config": CONFIG, "params": {"context": context}}
    results = server.client.post("/predict", json=body).json()["results"]
    assert [{each["meta"]["text"][0] for each in one["result"]} for one in results] == [
        {"blue"}, {"blue"},
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def with_files(loaded: Segmenter, folder: Path) -> Iterator[Server]:
    with running(loaded, label_studio_files=folder, max_body=100_000) as server:
        yield server


def test_files_of_label_studio(with_files: Server, folder: Path, picture: bytes) -> None:
    (folder / "upload/1").mkdir(parents=True)
    (folder / "upload/1/a b.png").write_bytes(picture)
    for name in ("/data/upload/1/a%20b.png", "/data/local-files/?d=upload/1/a%20b.png"):
        answer = _predict(with_files, CONFIG, {"data": {"image": name}}, text="red").json()
        assert answer["results"][0]["result"], name


def test_paths_out_of_the_folder(with_files: Server, folder: Path, picture: bytes) -> None:
    (folder.parent / "secret.png").write_bytes(picture)
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "large.png").write_bytes(bytes(100_001))
    names = [
        "/data/../secret.png", "/data/%2e%2e/secret.png", "/data//etc/passwd", "/data/link.png",
        "/data/local-files/?d=../secret.png", "/data/local-files/?d=/etc/passwd", "/data/loop.png",
        "/data/local-files/?d=", "/data/a%00b.png", "/data/", "/data/" + "a/" * 3000,
    ]  # fmt: skip
    for name in names:
        answer = _predict(with_files, CONFIG, {"data": {"image": name}}, text="red")
        assert answer.status_code == 422, name
        assert answer.json()["error"].startswith("there is no file"), name
    large = _predict(with_files, CONFIG, {"data": {"image": "/data/large.png"}}, text="red")
    assert large.status_code == 413


def test_nothing_is_fetched_or_read_by_default(server: Server) -> None:
    for name, hint in (
        ("http://127.0.0.1:1/a.png", "data URIs"),
        ("s3://bucket/a.png", "data URIs"),
        ("//[", "data URIs"),
        ("//host/data/a.png", "data URIs"),
        ("file:///data/a.png", "data URIs"),
        ("/data/upload/1/a.png", "--label-studio-files DIR"),
    ):
        answer = _predict(server, CONFIG, {"data": {"image": name}}, text="red")
        assert (answer.status_code, hint in answer.json()["hint"]) == (422, True), name


def test_the_folder_must_exist(tmp_path: Path, tiny_bundle: Path) -> None:
    run = invoke("serve", tiny_bundle, "--label-studio-files", tmp_path / "none", code=2)
    assert "there is no folder" in run.output


@pytest.mark.parametrize(
    "config",
    [
        None, "", "<View>", "<View/>", '<View><Image name="a" value="$a"/></View>', "<a>" * 30_000,
        '<!DOCTYPE a [<!ENTITY b "c">]>' + CONFIG, CONFIG.replace("toName", "for"),
        CONFIG.replace("$image", "image"), CONFIG + "x" * 2**17,
        "<View>" + '<Image name="a" toName="a" value="$a">' * 900 + "</Image>" * 900,
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_used(server: Server, config: object) -> None:
    answer = server.client.post("/setup", json={"project": "1.1", "schema": config})
    assert answer.status_code == 422
    assert "label config" in answer.json()["error"]


def test_tasks_that_are_none(server: Server, task: dict[str, Any]) -> None:
    for tasks in (None, 3, ["x"], [{}], [{"data": {"image": 3}}]):
        body = {"tasks": tasks, "label_config": CONFIG}
        assert server.client.post("/predict", json=body).status_code == 422
    assert server.client.post("/predict", json={"tasks": [], "label_config": CONFIG}).json() == {
        "results": []
    }


def test_basic_authentication(loaded: Segmenter) -> None:
    with running(loaded, api_key="s3cret") as server:
        body = {"project": "1.1", "schema": CONFIG}
        for auth, status in ((None, 401), (("any", "s3cre"), 401), (("any", "s3cret"), 200)):
            assert server.client.post("/setup", json=body, auth=auth).status_code == status
        assert server.client.get("/health").json()["status"] == "UP"
        broken = {"Authorization": b"Basic \x80"}
        assert server.client.get("/v1/info", headers=broken).status_code == 401


def test_what_the_sdk_makes_of_it(
    server: Server, task: dict[str, Any], loaded: Segmenter, colours: np.ndarray, tmp_path: Path
) -> None:
    interface = pytest.importorskip(
        "label_studio_sdk.label_interface", reason="label-studio-sdk is not installed"
    )
    from label_studio_sdk.converter import Converter, brush
    from label_studio_sdk.converter.converter import Format
    from label_studio_sdk.label_interface.objects import PredictionValue

    config = interface.LabelInterface(CONFIG)
    config.validate()
    [prediction] = _predict(server, CONFIG, task, text="green").json()["results"]
    value = PredictionValue(**prediction)
    assert config.validate_prediction(value.model_dump(), return_errors=True) == []
    mask = loaded.segment(colours, "green").mask
    export = tmp_path / "export.json"
    annotation = {"id": 1, "completed_by": 1, "result": value.model_dump()["result"]}
    export.write_text(json.dumps([{**task, "annotations": [annotation]}]))
    converter = Converter(CONFIG, project_dir=str(tmp_path), download_resources=False)
    converter.convert(str(export), str(tmp_path), Format.BRUSH_TO_NUMPY, is_dir=False)
    [layer] = tmp_path.glob("*.npy")
    assert layer.stem.endswith("-brush-green-0")
    assert np.array_equal(np.load(layer), mask * 255)
    for each in (np.zeros((300, 400), bool), np.arange(70_000).reshape(1, -1) % 7 == 0):
        decoded = brush.decode_rle(encode_brush_rle(each).tolist())
        assert np.array_equal(decoded, np.repeat(each.ravel(), 4) * 255)
