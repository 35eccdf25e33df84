"""The KServe v2 protocol, as NVIDIA's client speaks it and as JSON."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from rism.export.triton.config import Serving, segmenter_config
from rism.runtime.result.rendering import encode_png
from rism.runtime.segmenter import Segmenter
from rism.runtime.triton_backend import OUTPUTS, result_tensors
from tests.serve.conftest import Server, running


@pytest.fixture
def client(server: Server) -> Iterator[InferenceServerClient]:
    client = InferenceServerClient(server.url.removeprefix("http://"))
    yield client
    client.close()


def _inputs(**rows: list[bytes]) -> list[InferInput]:
    found = []
    for name, values in rows.items():
        tensor = InferInput(name, [len(values), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[each] for each in values], np.object_))
        found.append(tensor)
    return found


def test_what_the_server_is(client: InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("rism") and client.is_model_ready("rism", "1")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    about = client.get_model_metadata(model_name="rism")
    tensors = [*about["inputs"], *about["outputs"]]
    config = segmenter_config("rism", 8, Serving())
    for tensor in tensors:  # the same as in a Triton repository
        word = {"BYTES": "STRING"}.get(tensor["datatype"], tensor["datatype"])
        described = f'name: "{tensor["name"]}" data_type: TYPE_{word} dims: [{tensor["shape"][1]}]'
        assert described in " ".join(config.split()), config


def test_rows_of_several_images(
    client: InferenceServerClient, picture: bytes, loaded: Segmenter, colours: np.ndarray
) -> None:
    mirrored = colours[:, ::-1].copy()
    images = [picture, encode_png(mirrored), picture]
    answer = client.infer(
        "rism", _inputs(image=images, expression=[b"green", b"the red", b"red"]), request_id="7"
    )
    green, red = loaded.segment(colours, ["green", "red"])
    expected = result_tensors([green, loaded.segment(mirrored, "the red"), red])
    assert answer.get_response()["id"] == "7"
    assert set(expected) == set(OUTPUTS)
    for name, array in expected.items():
        found = answer.as_numpy(name)
        assert found.shape == array.shape
        if array.dtype == np.object_:
            assert (found == array).all()
        else:
            np.testing.assert_allclose(found, array, rtol=1e-4)


def test_chosen_outputs_binary_or_not(client: InferenceServerClient, picture: bytes) -> None:
    outputs = [
        InferRequestedOutput("box_xyxy", binary_data=False),
        InferRequestedOutput("mask", binary_data=True),
    ]
    inputs = _inputs(image=[picture], expression=[b"green"])
    answer = client.infer("rism", inputs, outputs=outputs)
    assert [each["name"] for each in answer.get_response()["outputs"]] == ["box_xyxy", "mask"]
    with Image.open(io.BytesIO(answer.as_numpy("mask")[0, 0])) as mask:
        assert mask.getbbox() == tuple(answer.as_numpy("box_xyxy")[0])


def test_all_in_json(server: Server, picture: bytes, loaded: Segmenter) -> None:
    with Image.open(io.BytesIO(picture)) as image:
        result = loaded.segment(image, "green")
    inputs = [
        {"name": "expression", "datatype": "BYTES", "shape": [1, 1], "data": [["green"]]},
        {
            "name": "image", "datatype": "BYTES", "shape": [1, 1],
            "data": [base64.b64encode(picture).decode()],
        },
    ]  # fmt: skip
    answer = server.client.post("/v2/models/rism/infer", json={"inputs": inputs})
    assert answer.headers["content-type"] == "application/json"
    found = {each["name"]: each["data"] for each in answer.json()["outputs"]}
    assert found["box_xyxy"] == list(result.box_xyxy or ())
    assert found["confidence"] == [None]  # the bundle has no rule, and JSON no NaN
    assert found["reason"] == [""]
    with Image.open(io.BytesIO(base64.b64decode(found["mask"][0]))) as mask:
        assert np.array_equal(np.asarray(mask) > 0, result.mask)


def test_what_the_client_hears_of_errors(client: InferenceServerClient, picture: bytes) -> None:
    for inputs, error in (
        (_inputs(image=[b"x"], expression=[b"green"]), "not an image"),
        (_inputs(image=[picture], expression=[b"\xff"]), "not UTF-8"),
        (_inputs(image=[picture], expression=[b" "]), "expected words"),
        (_inputs(image=[picture], expression=[b"a", b"b"]), "with as many rows"),
        (_inputs(image=[picture]), "expected inputs image and expression"),
        (_inputs(image=[picture] * 33, expression=[b"a"] * 33), "at most 32"),
        (_inputs(picture=[picture], expression=[b"a"]), "input 'picture'"),
    ):
        with pytest.raises(InferenceServerException, match=error):
            client.infer("rism", inputs)
    inputs = _inputs(image=[picture], expression=[b"green"])
    with pytest.raises(InferenceServerException, match="there is no output 'masks'"):
        client.infer("rism", inputs, outputs=[InferRequestedOutput("masks")])


TENSOR = {"name": "image", "datatype": "BYTES", "shape": [1, 1]}


@pytest.mark.parametrize(
    ("request_", "header", "data", "status"),
    [
        ({}, None, b"", 422),
        ({"inputs": 3}, None, b"", 422),
        ({"inputs": [3]}, None, b"", 422),
        ({"inputs": [{**TENSOR, "name": ["image"], "data": ["a"]}]}, None, b"", 422),
        ({"inputs": [{**TENSOR, "data": [3]}]}, None, b"", 422),
        ({"inputs": [{**TENSOR, "data": ["a"]}, {**TENSOR, "data": ["a"]}]}, None, b"", 422),
        ({"inputs": [{**TENSOR, "parameters": {"binary_data_size": 99}}]}, 0, b"abc", 400),
        ({"inputs": [{**TENSOR, "parameters": {"binary_data_size": -1}}]}, 0, b"abc", 400),
        ({"inputs": [{**TENSOR, "parameters": {"binary_data_size": 3}}]}, 0, b"abc", 400),
        ({"inputs": [{**TENSOR, "parameters": {"binary_data_size": 5}}]}, 0, b"\xff\0\0\0a", 400),
        ({}, 99, b"", 400),
        ({}, -99, b"", 400),
    ],
)  # fmt: skip
def test_bodies_that_lie(
    server: Server, request_: dict[str, Any], header: int | None, data: bytes, status: int
) -> None:
    body = json.dumps(request_).encode()
    length = {} if header is None else {"Inference-Header-Content-Length": str(len(body) + header)}
    answer = server.client.post("/v2/models/rism/infer", content=body + data, headers=length)
    assert (answer.status_code, set(answer.json())) == (status, {"error", "hint"}), answer.text


def test_probes_need_no_key(loaded: Segmenter) -> None:
    with running(loaded, api_key="s3cret") as server:
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert httpx.get(server.url + path).status_code == 200
        for path in ("/v2", "/v2/models/rism"):
            assert httpx.get(server.url + path).status_code == 401
