"""The whole program with ONNX Runtime, where its C++ headers are; they are in no wheel."""

import os
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from rism.runtime import Segmenter
from tests.cpp.build import EXAMPLE, build, run
from tests.paths import EXAMPLES, MINI, STREET


def _headers() -> Path | None:
    """Folder of onnxruntime_cxx_api.h: of the variable, or where Debian's package puts it."""
    places = [Path("/usr/include/onnxruntime"), Path("/usr/local/include/onnxruntime")]
    if root := os.environ.get("ONNXRUNTIME_ROOT"):
        places[:0] = [Path(root, "include"), Path(root, "include/onnxruntime")]
    return next((p for p in places if (p / "onnxruntime_cxx_api.h").is_file()), None)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    headers = _headers()
    if headers is None:
        pytest.skip(
            "no headers of ONNX Runtime: apt-get install libonnxruntime-dev (Debian 13), or "
            "set ONNXRUNTIME_ROOT to an unpacked release"
        )
    # The library of the wheel that the runtime's own tests use. An older header fits a newer
    # library.
    wheel = Path(onnxruntime.__file__).parent / "capi"
    library = next(wheel.glob("libonnxruntime.so.1*"))
    folder = tmp_path_factory.mktemp("program")
    (folder / "libonnxruntime.so.1").symlink_to(library)
    build(
        EXAMPLE,
        folder,
        f"-DONNXRUNTIME_INCLUDE={headers}",
        f"-DONNXRUNTIME_LIBRARY={library}",
        f"-DCMAKE_BUILD_RPATH={folder}",
    )
    return folder / "rism_cpp"


@pytest.mark.parametrize("capture", ["", "vectors", "matrices"])
@pytest.mark.parametrize("picture", ["street.png", "place-1.png"])
def test_the_mask_is_that_of_rism_run(
    capture: str, picture: str, program: Path, tmp_path: Path
) -> None:
    options = ["--capture", capture] if capture else []
    output = tmp_path / "mask.png"
    expression = "the green van"
    done = run([program, *options, MINI, EXAMPLES / picture, expression, output])
    assert done.returncode == 0, done.stderr
    segmenter = Segmenter.from_bundle(provider="cpu", capture=capture or "scores")
    ours = segmenter.segment(EXAMPLES / picture, expression, paper=True)
    assert ((np.asarray(Image.open(output)) > 0) == ours.mask).all()
    [said] = re.findall(r"separability ([0-9.]+), ONNX Runtime", done.stdout)
    assert float(said) == pytest.approx(ours.separability, abs=2e-3)


def test_token_ids_in_place_of_words(program: Path, tmp_path: Path) -> None:
    segmenter = Segmenter.from_bundle(provider="cpu")
    encoded = segmenter._encoder.encode(["the red car"])
    ids = ",".join(map(str, encoded.input_ids[0, : encoded.lengths[0]]))
    places = [MINI, STREET]
    assert run([program, *places, "the red car", tmp_path / "a.png"]).returncode == 0
    assert run([program, "--ids", ids, *places, tmp_path / "b.png"]).returncode == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_exit_codes(program: Path, tmp_path: Path) -> None:
    assert run([program, "--help"]).returncode == 0
    for wrong in (["x"], ["--new", "a", "b", "c", "d"], ["a", "b", "c", "d", "e"], ["--ids"]):
        done = run([program, *wrong])
        assert done.returncode == 2 and done.stderr.startswith("usage: ")
    output = tmp_path / "mask.png"
    for words, message in (
        ([tmp_path, STREET, "van", output], "no manifest.json"),
        ([MINI, tmp_path, "van", output], "no picture"),
        ([MINI, MINI / "noise.f32", "van", output], "neither PNG nor JPEG"),
        (["--ids", "1,x", MINI, STREET, output], "expected whole numbers"),
        (["--ids", "1,99999", MINI, STREET, output], "failed"),
        (["--engine", "e", MINI, STREET, "van", output], "takes no --engine"),
        (["--capture", "all", MINI, STREET, "van", output], "expected scores, vectors"),
    ):
        done = run([program, *words])
        assert done.returncode == 1, words
        assert message in done.stderr and done.stderr.count("\n") == 1
        assert done.stderr.startswith("rism_cpp: error: ")
    assert not output.exists()
