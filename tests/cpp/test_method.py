"""The single header says what the NumPy runtime says, mask pixel for pixel."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rism.runtime.image.geometry import Plan
from tests.cpp.build import EXAMPLE, TESTS, build, run, tool
from tests.cpp.recording import recorders, write_case
from tests.paths import EXAMPLES, MINI

Outputs = dict[str, np.ndarray]


def _record_examples(folder: Path) -> int:
    """Every picture of examples/ by its own expression; some in all capture modes."""
    entries = json.loads((EXAMPLES / "examples.json").read_text())
    count = 0
    for capture, some in (("vectors", entries), ("matrices", entries[:4]), ("scores", entries[:4])):
        segmenter, engines = recorders(MINI, capture)
        for at, entry in enumerate(some):
            image = EXAMPLES / entry["image"]
            options = [{}, {"tau": 0.3, "prototype": "cosine"}] if capture != "scores" else [{}]
            result = segmenter.segment(image, entry["expression"], paper=True)
            outputs = {k: v[0] for k, v in engines[f"transformer.{capture}"].gave[-1].items()}
            for number, other in enumerate(options):
                place, plan = folder / f"{capture}-{at}-{number}", segmenter.set_image(image).plan
                mask = write_case(place, capture, outputs, plan, **other)
                assert number > 0 or (mask == result.mask).all()
                count += 1
    return count


def _drawn(rng: np.random.Generator, rows: int, columns: int) -> Outputs:
    """Captures of a random scene: a blob in the attention, and features that know of it."""
    blocks, channels, tokens = 3, 11, rows * columns
    y, x = np.indices((rows, columns)).reshape(2, -1)
    away = np.hypot(y - rows * rng.uniform(), x - columns * rng.uniform())
    blob = np.exp(-(away**2) / (1 + rows * columns / 9)).astype(np.float32)
    attention = np.stack([blob * k + rng.uniform(0, 0.4, tokens) for k in (1, 2, 3)])
    matrices = rng.uniform(0, 1, (blocks, tokens, tokens)) + 4 * blob[:, None] * blob
    matrices /= matrices.sum(axis=-1, keepdims=True)
    features = rng.standard_normal((tokens, channels)) + 2 * blob[:, None]
    drawn = {"attention_vectors": attention, "transition_matrices": matrices, "features": features}
    return {name: array.astype(np.float32) for name, array in drawn.items()}


PLANS = {
    "odd": Plan((101, 67), (72, 48), (0, 0, 72, 48), (6, 9)),
    "crop": Plan((333, 250), (149, 111), (2, 3, 146, 107), (13, 18)),
    "smaller": Plan((7, 5), (128, 96), (0, 0, 128, 96), (12, 16)),
    "thin": Plan((1, 40), (8, 64), (0, 0, 8, 64), (8, 1)),
    "token": Plan((3, 3), (8, 8), (0, 0, 8, 8), (1, 1)),
}


def _nan(array: np.ndarray) -> np.ndarray:
    spoilt = array.copy()
    spoilt.reshape(-1)[array.size // 2] = np.nan
    return spoilt


def _with(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Outputs], Outputs]:
    return lambda outputs: {**outputs, name: change(outputs[name])}


CONSTANT, ENDLESS = "the attention map is constant", "the attention map is not finite"
# What is done to sound captures, and what the runtime calls the result.
SPOILT: dict[str, tuple[Callable[[Outputs], Outputs], str]] = {
    "constant": (_with("propagated_vectors", lambda a: np.full_like(a, 0.1)), CONSTANT),
    "nan": (_with("propagated_vectors", _nan), ENDLESS),
    "overflow": (_with("propagated_vectors", lambda a: a * np.float32(3e38)), ENDLESS),
    "nan-coarse": (_with("attention_vectors", _nan), ""),
    "nan-features": (_with("features", _nan), "the features are not finite"),
    "zero-features": (_with("features", np.zeros_like), ""),
    "zero-rows": (_with("features", lambda f: f * (np.arange(len(f))[:, None] % 5 > 0)), ""),
    "large-features": (_with("features", lambda f: f * np.float32(1e25)), ""),
}


def _record_drawn(folder: Path) -> int:
    rng = np.random.default_rng(5)
    count = 0
    for name, plan in PLANS.items():
        for tau in (0.0, 0.5, 0.8):
            drawn = _drawn(rng, *plan.grid_hw)
            write_case(folder / f"drawn-{name}-{tau}", "matrices", drawn, plan, tau=tau)
            count += 1
    drawn = _drawn(rng, 6, 9)
    matrices = drawn.pop("transition_matrices")
    drawn["propagated_vectors"] = np.einsum("lij,lj->li", matrices, drawn["attention_vectors"])
    for name, (spoil, reason) in SPOILT.items():
        mask = write_case(folder / f"spoilt-{name}", "vectors", spoil(drawn), PLANS["odd"])
        assert f"reason {reason}\n" in (folder / f"spoilt-{name}/case.txt").read_text()
        assert not (reason and mask.any())
        count += 1
    flat = np.full(54, 0.5, np.float32)
    scores = {"scores": flat, "coarse_attention": flat, "refined_attention": flat,
              "separability": np.float32(1)}  # fmt: skip
    write_case(folder / "spoilt-scores", "scores", scores, PLANS["odd"])
    return count + 1


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("cases")
    with np.errstate(all="ignore"):
        return folder, _record_examples(folder) + _record_drawn(folder)


@pytest.fixture(scope="module")
def built(cases: tuple[Path, int], cpp_build: Path) -> Path:
    return build(TESTS, cpp_build, f"-DRISM_CASES={cases[0]}", target="method_test")


def test_ctest_passes_every_recorded_case(cases: tuple[Path, int], built: Path) -> None:
    done = run([tool("ctest"), "--test-dir", built, "--output-on-failure", "--parallel", "2"])
    assert done.returncode == 0, done.stdout[-4000:]
    # All cases, and the one without a recording.
    assert re.search(rf"100% tests passed.* out of {cases[1] + 1}\b", done.stdout), done.stdout


def test_a_single_pixel_is_noticed(cases: tuple[Path, int], built: Path, tmp_path: Path) -> None:
    case = cases[0] / "vectors-0-0"
    copied = shutil.copytree(case, tmp_path / "case")
    mask = bytearray((copied / "mask.u8").read_bytes())
    mask[1000] ^= 1
    (copied / "mask.u8").write_bytes(mask)
    done = run([built / "method_test", copied])
    assert done.returncode == 1
    assert "1 pixels of the mask differ" in done.stdout


def test_the_header_needs_nothing_but_the_standard_library() -> None:
    text = (EXAMPLE / "include/rism/method.hpp").read_text()
    included = re.findall(r"#include (.*)", text)
    assert included
    assert all(re.fullmatch(r"<[a-z]+>", name) for name in included)
