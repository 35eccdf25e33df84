"""The model of the Python backend: a recorded edge of the server, and real graphs behind it."""

import io
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rism.export.triton import TritonOptions, export_triton
from rism.runtime import BundleError, Segmenter
from rism.runtime.bundle.reader import Bundle, resolve_bundle
from rism.runtime.bundle.update import update_bundle
from tests.export.triton.server import RefusedError, Server, load_module
from tests.paths import STREET

IMAGE = STREET.read_bytes()


@dataclass
class Tensor:
    name: str
    array: np.ndarray

    def as_numpy(self) -> np.ndarray:
        return self.array


@dataclass
class TritonError:
    INVALID_ARG, INTERNAL = "INVALID_ARG", "INTERNAL"
    text: str
    code: str = INTERNAL

    def message(self) -> str:
        return self.text


class Response:
    def __init__(self, tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self.tensors, self.problem = {t.name: t.array for t in tensors}, error

    def has_error(self) -> bool:
        return self.problem is not None

    def error(self) -> TritonError | None:
        return self.problem


def backend(server: Server) -> SimpleNamespace:
    """`triton_python_backend_utils`: names and order of arguments as its documentation has them."""

    class InferenceRequest:
        def __init__(
            self,
            *,
            model_name: str,
            requested_output_names: list[str],
            inputs: list[Tensor],
            preferred_memory: str,
        ) -> None:
            assert preferred_memory == "on the CPU"
            self.model, self.wanted = model_name, requested_output_names
            self.inputs = {tensor.name: tensor.array for tensor in inputs}

        def exec(self) -> Response:
            try:
                [answer] = server.infer(self.model, self.inputs)
            except RefusedError as error:
                return Response(error=TritonError(str(error)))
            return Response([Tensor(name, answer[name]) for name in self.wanted])

    return SimpleNamespace(
        Tensor=Tensor,
        TritonError=TritonError,
        InferenceRequest=InferenceRequest,
        InferenceResponse=Response,
        PreferredMemory=lambda kind: f"on the {kind}",
        TRITONSERVER_MEMORY_CPU="CPU",
        get_input_tensor_by_name=lambda request, name: Tensor(name, request[name]),
        get_output_tensor_by_name=lambda given, name: Tensor(name, given.tensors[name]),
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("triton") / "out"
    bundle = Bundle.open(resolve_bundle())
    report = export_triton(bundle, output, TritonOptions(segmenter=True, link=True, prefix="s_"))
    assert report.segmenter == "s_rism"
    return output


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], tuple[Any, Server]]:
    """Load model.py as the backend does."""

    def start(folder: Path) -> tuple[Any, Server]:
        server = Server(folder)
        monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend(server))
        model = load_module(folder / "s_rism/1/model.py").TritonPythonModel()
        model.initialize({"model_repository": str(folder / "s_rism"), "model_version": "1"})
        return model, server

    return start


def asks(*rows: tuple[bytes, str | bytes]) -> dict[str, np.ndarray]:
    texts = [text.encode() if isinstance(text, str) else text for _, text in rows]
    return {
        "image": np.array([[picture] for picture, _ in rows], np.object_),
        "expression": np.array([[text] for text in texts], np.object_),
    }


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_masks_are_the_segmenters(repository: Path, load: Any) -> None:
    model, server = load(repository)
    config = server.configs["s_rism"]
    assert (config.backend, config.max_batch_size) == ("python", 8)
    assert config.HasField("dynamic_batching")
    other = png(np.random.default_rng(0).integers(0, 255, (70, 120, 3), dtype=np.uint8))
    requests = [
        asks((IMAGE, "the green van")),
        asks((other, "the red car"), (IMAGE, "the red car")),
        asks((IMAGE, "the green van")),
        asks((IMAGE, "the keyboard")),
    ]
    server.runs.clear()
    answers = model.execute(requests)
    # Four requests, two pictures, four different questions: a run for each picture.
    assert server.runs["s_vae_encoder"] == [0, 0]
    assert server.runs["s_transformer_scores"] == [3, 1]
    assert [answer.error() for answer in answers] == [None] * 4
    said = answers[3].tensors["reason"][0, 0].decode()
    assert said.startswith("nothing in the image seems to fit: confidence 0.0")
    segmenter = Segmenter.from_bundle(provider="cpu", capture="scores")
    for request, answer in zip(requests, answers, strict=True):
        dims = {o.name: list(o.dims) for o in config.output}
        assert {k: list(v.shape[1:]) for k, v in answer.tensors.items()} == dims
        rows = zip(request["image"][:, 0], request["expression"][:, 0], strict=True)
        for row, (picture, text) in enumerate(rows):
            wanted = segmenter.segment(picture, text.decode())
            mask = np.asarray(Image.open(io.BytesIO(answer.tensors["mask"][row, 0]))) > 0
            assert mask.shape == wanted.mask_hw.shape
            assert (mask == wanted.mask_hw).mean() > 0.9999
            found = {name: tensor[row, 0] for name, tensor in answer.tensors.items()}
            assert found["separability"] == pytest.approx(wanted.separability, rel=1e-3)
            assert found["area_share"] == pytest.approx(wanted.area_share, abs=1e-3)
            sure = np.nan if wanted.confidence is None else wanted.confidence
            assert found["confidence"] == pytest.approx(sure, abs=1e-3, nan_ok=True)
            reason = found["reason"].decode()
            assert (reason == "") == mask.any() == (wanted.reason is None)
            assert reason.split(":")[0] == (wanted.reason or "").split(":")[0]
            if wanted.box_xyxy is not None:
                np.testing.assert_allclose(answer.tensors["box_xyxy"][row], wanted.box_xyxy, atol=1)


def test_without_a_rule_there_is_no_confidence(load: Any, tmp_path: Path) -> None:
    bundle = Bundle.open(Path(shutil.copytree(resolve_bundle(), tmp_path / "mini")))
    update_bundle(bundle.path, lambda data: data["method"].pop("confidence"))
    options = TritonOptions(segmenter=True, link=True, prefix="s_")
    export_triton(Bundle.open(bundle.path), tmp_path / "out", options)
    [answer] = load(tmp_path / "out")[0].execute([asks((IMAGE, "the keyboard"))])
    assert np.isnan(answer.tensors["confidence"]).tolist() == [[True]]
    assert answer.tensors["reason"].tolist() == [[b""]]


def test_a_bad_request_spoils_no_other(repository: Path, load: Any) -> None:
    model, _ = load(repository)
    sound = [(IMAGE, "the green van"), (IMAGE, "the red car")]
    spoilt = [(b"no picture", "the van"), (IMAGE, "word " * 100), (IMAGE, b"\xff\xfe")]
    rows = [spoilt[0], sound[0], *spoilt[1:], sound[1]]
    said = [answer.error() for answer in model.execute([asks(row) for row in rows])]
    assert [problem is None for problem in said] == [False, True, False, False, True]
    wanted = {0: "is not an image rism can read", 2: "tokens", 3: "an expression is not UTF-8"}
    for place, words in wanted.items():
        assert said[place].code == "INVALID_ARG"
        assert words in said[place].message() and "\n" not in said[place].message()


def test_a_model_of_the_server_that_fails(repository: Path, load: Any) -> None:
    model, server = load(repository)
    server.configs["s_transformer_scores"].max_batch_size = 1
    [first, second] = model.execute([asks((IMAGE, "the van")), asks((IMAGE, "the red car"))])
    assert first.error() is None and second.error() is None  # run again, one by one
    both = [asks((IMAGE, "the van"), (IMAGE, "the red car"))]
    problem = model.execute(both)[0].error()
    assert problem.code == "INTERNAL"
    assert problem.message().startswith("model s_transformer_scores failed (")


def test_other_words_than_the_bundles(repository: Path, load: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(repository, folder)
    tokenizer = folder / "s_rism/1/tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes() + b" ")
    with pytest.raises(BundleError, match=r"'tokenizer\.json' is not the one that the manifest"):
        load(folder)
