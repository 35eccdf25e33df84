"""What becomes of a variant that this machine can run; the library is a recorded fake."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from rism.export.engines.variant import check_here
from rism.export.errors import BuildError
from rism.runtime.bundle.reader import Bundle
from rism.runtime.diagnostics.selftest import record
from tests.conftest import seal
from tests.runtime.engines.fake_tensorrt import stand_in, variant
from tests.runtime.engines.profiles import ALL, transformer

NAME = "rtx-fp16"


@pytest.fixture
def built(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with test vectors, and engines that this machine seems to run."""
    stand_in(monkeypatch)
    entry = variant(tiny_bundle, {**ALL, "transformer.vectors": transformer(1)})
    record(seal(tiny_bundle, lambda data: data.update(engines=[entry])))
    return tiny_bundle


def spoil(folder: Path) -> None:
    """A plan that multiplies by 2.5 where the graph does by 2."""
    plan = folder / "engines" / NAME / "transformer.vectors.plan"
    model = onnx.load(plan)
    (two,) = [each for each in model.graph.initializer if each.name == "two"]
    two.CopyFrom(numpy_helper.from_array(np.float32(2.5), "two"))
    plan.write_bytes(model.SerializeToString())
    data: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    kept = {key: data[key] for key in ("engines", "self_test")}
    seal(folder, lambda manifest: manifest.update(kept))


def test_right_numbers(built: Path) -> None:
    assert check_here(built, NAME).startswith("ok (")
    assert [each.name for each in Bundle.open(built).manifest.engines] == [NAME]


def test_wrong_numbers_are_removed(built: Path) -> None:
    spoil(built)
    said = r"'rtx-fp16' does not return what the graphs do \(transformer.vectors: .* off by"
    with pytest.raises(BuildError, match=said):
        check_here(built, NAME)
    bundle = Bundle.open(built)
    assert bundle.manifest.engines == ()
    assert not [name for name in bundle.manifest.files if name.startswith("engines/")]
    assert not (built / "engines").exists()


def test_wrong_numbers_may_be_kept(built: Path) -> None:
    spoil(built)
    assert check_here(built, NAME, unchecked=True).startswith("FAILED (transformer.vectors")
    assert len(Bundle.open(built).manifest.engines) == 1


def test_without_vectors_it_says_so(built: Path) -> None:
    data = json.loads((built / "manifest.json").read_text())
    (built / "selftest.bin").unlink()
    del data["self_test"]
    (built / "manifest.json").write_text(json.dumps(data))
    seal(built, lambda manifest: manifest.update(engines=data["engines"]))
    said = f"not tested: no test vectors, rism doctor {built} --record makes them"
    assert check_here(built, NAME) == said
