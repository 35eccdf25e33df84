"""What `POST /v1/segment` answers, against the library and the command line."""

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from rism.runtime.result.rendering import encode_png, overlay
from rism.runtime.result.rle import decode_rle
from rism.runtime.segmenter import Segmenter
from rism.serve.answers import words
from tests.cli.conftest import invoke
from tests.paths import EXAMPLES
from tests.serve.conftest import Server, running


def test_the_same_bits_as_rism_run(
    server: Server, picture: bytes, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(picture)
    invoke("run", tmp_path / "a.png", "green", "-o", tmp_path / "m.png", "--bundle", tiny_bundle)
    mask = server.segment(picture, "green", headers={"Accept": "image/png"})
    assert mask.headers["content-type"] == "image/png"
    assert mask.content == (tmp_path / "m.png").read_bytes()


def test_everything_about_a_result(
    server: Server, picture: bytes, loaded: Segmenter, colours: np.ndarray
) -> None:
    uri = "data:image/png;base64," + base64.b64encode(picture).decode()
    body = {
        "image": uri, "expressions": ["green", "red"], "tau": 0.5,
        "polygons": True, "mask_png": True, "maps": True,
    }  # fmt: skip
    answer = server.client.post("/v1/segment", json=body).json()
    results = loaded.segment(colours, ["green", "red"], tau=0.5)
    assert answer["provider"] == "cpu"
    assert answer["bundle"]["digest"] == loaded.bundle.digest
    assert answer["timings_ms"]["transformer"] > 0
    for found, result in zip(answer["results"], results, strict=True):
        wanted = result.to_json_dict()
        assert {key: found[key] for key in wanted if key in found} == {
            key: value for key, value in wanted.items() if key in found
        }
        size = found["rle"]["size"]
        assert np.array_equal(decode_rle(found["rle"]["counts"], (size[0], size[1])), result.mask)
        with Image.open(io.BytesIO(base64.b64decode(found["mask_png"]))) as mask:
            assert np.array_equal(np.asarray(mask) > 0, result.mask)
        assert np.abs(np.array(found["maps"]["score"]) - result.score_map).max() < 1e-4
        assert bool(found["polygons"]) == bool(result.mask.any())


def test_words_are_sums_of_their_tokens(loaded: Segmenter, colours: np.ndarray) -> None:
    result = loaded.segment(colours, "green")
    maps = np.arange(9.0, dtype=np.float32)[:, None, None] * np.ones((9, 2, 3), np.float32)
    tokens = ("<s>", "\n", "remove", " the", " 'ST", "OP'", " ", "sign", "</s>")
    told = replace(
        result, tokens=tokens, token_attention=maps, instruction="remove the 'STOP' sign"
    )
    found = [(text, float(attention[0, 0])) for text, attention in words(told)]
    assert found == [("remove", 2), ("the", 3), ("'STOP'", 9), ("sign", 7)]
    other = replace(told, instruction="erase it")
    assert [text for text, _ in words(other)] == [each.strip() for each in tokens if each.strip()]


def test_a_picture_of_all_masks(
    server: Server, picture: bytes, loaded: Segmenter, colours: np.ndarray
) -> None:
    shown = server.client.post(
        "/v1/segment?overlay=1", files={"image": picture}, data={"expression": ["green", "red"]}
    )
    results = loaded.segment(colours, ["green", "red"])
    assert shown.content == encode_png(overlay(colours, results))


def test_with_keep_another_tau_runs_no_transformer(server: Server, picture: bytes) -> None:
    server.segment(picture, "green", keep="1")
    ran = len(server.gate.rows)
    again = server.segment(picture, "green", keep="1", tau="0.3").json()["results"][0]
    assert len(server.gate.rows) == ran
    fresh = server.segment(picture, "green", tau="0.3").json()["results"][0]
    assert len(server.gate.rows) == ran + 1
    assert again == fresh


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "text/plain"),
    ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "not JSON"),
    ({"content": b"[" * 10**5, "headers": {"content-type": "application/json"}}, 400, "not JSON"),
    ({"json": []}, 400, "not a JSON object"),
    ({"json": {"image": "AAAA", "expression": "a", "tau": None}}, 422, "tau is 'None'"),
    ({"json": {"image": "AAAA", "expression": "a", "tau": True}}, 422, "tau is 'True'"),
    ({"json": {"image": "AAAA", "expression": "a", "paper": "yes"}}, 422, "expected true or false"),
    ({"json": {"image": "AAAA", "expression": ["a", 3]}}, 422, "an expression is '3'"),
    ({"json": {"image": "AAAA", "expression": []}}, 422, "there is no expression"),
    ({"json": {"image": "AAAA", "expression": ["a"] * 33}}, 422, "at most 32 are read"),
    ({"json": {"image": "AAAA", "expression": "a", "colour": 1}}, 422, "no field 'colour'"),
    ({"json": {"image": "http://a/b.png", "expression": "a"}}, 422, "this server fetches nothing"),
    ({"json": {"image": "file:///etc/passwd", "expression": "a"}}, 422, "fetches nothing"),
    ({"json": {"image": "data:,x", "expression": "a"}}, 422, "not base64"),
    ({"json": {"image": {}, "expression": "a"}}, 422, "the image is not a file"),
    ({"json": {"image": "AAAA", "expression": "a"}}, 422, "not an image"),
    ({"json": {"expression": "a"}}, 422, "there are 0 images"),
    ({"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data"}}, 400, "form"),
    ({"files": {"image": b""}, "data": {"expression": "a"}}, 422, "0 bytes"),
]


@pytest.mark.parametrize(("request_", "status", "error"), REFUSED)
def test_what_is_refused(server: Server, request_: Any, status: int, error: str) -> None:
    answer = server.client.post("/v1/segment", **request_)
    assert (answer.status_code, set(answer.json())) == (status, {"error", "hint"}), answer.text
    assert error in answer.json()["error"]
    assert answer.json()["hint"]


def test_what_is_too_large(loaded: Segmenter, picture: bytes) -> None:
    with running(loaded, max_body=4000, max_pixels=100 * 100) as server:
        assert server.segment(picture, "green").json()["error"].startswith("the image has 15360")
        big = server.segment(bytes(5000), "green")
        assert big.status_code == 413

        def parts() -> Any:
            yield from [bytes(1000)] * 9

        kind = {"content-type": "application/json"}
        chunked = server.client.post("/v1/segment", content=parts(), headers=kind)
        assert chunked.status_code == 413


def test_one_mask_of_several_expressions(server: Server, picture: bytes) -> None:
    assert server.segment(picture, "a", "b", headers={"Accept": "image/png"}).status_code == 406


def test_examples_are_those_of_the_checkout(server: Server) -> None:
    found = server.client.get("/v1/examples").json()["examples"]
    files = {"mushrooms": "relation-1", "cups": "size-1", "animals": "kind-1"}
    for each in found:
        drawn = server.client.get(f"/v1/examples/{each['name']}")
        with (
            Image.open(io.BytesIO(drawn.content)) as image,
            Image.open(EXAMPLES / f"{files.get(each['name'], each['name'])}.png") as wanted,
        ):
            assert np.array_equal(np.asarray(image), np.asarray(wanted.convert("RGB")))
    small = server.client.get("/v1/examples/street?thumbnail=1")
    assert small.headers["content-type"] == "image/jpeg" and len(small.content) < 20_000
    missing = server.client.get("/v1/examples/nothing")
    assert (missing.status_code, "street, mushrooms" in missing.json()["hint"]) == (404, True)


def test_other_addresses(server: Server) -> None:
    get = server.client.get
    assert get("/healthz").json() == {"status": "alive"}
    assert get("/v1/info").json()["limits"]["expressions"] == 32
    assert get("/nowhere").json()["error"] == "Not Found"
    assert get("/v1/segment").status_code == 405
    assert get("/static/../app.py").status_code == 404
    assert get("/static/%2e%2e/app.py").status_code == 404
    assert "POST /v1/segment" in get("/docs").text
    assert get("/", headers={"x-request-id": "mine"}).headers["x-request-id"] == "mine"
    assert get("/", headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"
    foreign = get("/healthz", headers={"origin": "http://evil"})
    assert "access-control-allow-origin" not in foreign.headers
    counted = get("/metrics").text
    assert 'rism_requests_total{path="/v1/segment",status="405"} 1.0' in counted
    assert "rism_stage_seconds_bucket" in counted


def test_who_may_ask(loaded: Segmenter, picture: bytes) -> None:
    settings = {"api_key": "s3cret", "hosts": ("127.0.0.1",), "cors_origins": ("http://mine",)}
    with running(loaded, **settings) as server:
        assert server.segment(picture, "green").status_code == 401
        assert server.client.get("/metrics").status_code == 401
        wrong = {"Authorization": "Bearer s3cre"}
        assert server.segment(picture, "green", headers=wrong).status_code == 401
        for headers in (
            {"Authorization": "Bearer s3cret"},
            {"Authorization": "Token s3cret"},
            {"Token": "s3cret"},
        ):
            assert server.segment(picture, "green", headers=headers).status_code == 200
        for path in ("/", "/static/app.js", "/docs", "/v1/examples/street"):
            assert server.client.get(path).status_code == 200
        renamed = server.client.get("/healthz", headers={"host": "evil.example:7000"})
        assert (renamed.status_code, "--allow-host" in renamed.json()["hint"]) == (400, True)
        shared = server.client.get("/healthz", headers={"origin": "http://mine"})
        assert shared.headers["access-control-allow-origin"] == "http://mine"


def test_the_description_holds(server: Server) -> None:
    """Requests that schemathesis makes of /openapi.json: no 500, and answers as described."""
    import hypothesis
    import schemathesis
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    # No schema can say which bytes are an image.
    beyond = [positive_data_acceptance]

    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 7
    for operation in operations:

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(max_examples=20, deadline=None, database=None, derandomize=True)
        def check(case: schemathesis.Case) -> None:
            case.call_and_validate(excluded_checks=beyond)

        check()
    assert httpx.get(f"{server.url}/healthz").status_code == 200
