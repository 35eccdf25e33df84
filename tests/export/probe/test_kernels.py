"""The Triton kernels without a GPU: interpreted against float64, and compiled for several."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from tests.export.probe.cases import CASES, assert_literal
from tests.paths import ROOT

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton: the extra probe")
WAYS = ("row statistics", "own statistics")
DTYPES = {
    **{(name, torch.float32): 2e-6 for name in CASES},
    # Products of 16-bit numbers are exact in float32, so nothing is lost beside it.
    **{(name, torch.bfloat16): 2e-6 for name in ("odd sizes", "three sentences")},
    **{(name, torch.float16): 2e-6 for name in ("odd sizes", "three sentences")},
    # Scores of several hundred leave exp(s - L) the fewer digits.
    ("loud scores", torch.float32): 2e-4,
}
# Heads, programs for each of them, multiprocessors -> heads that one program sums over.
HEADS = {(24, 8, 132): 1, (32, 32, 132): 1, (32, 256, 132): 8, (24, 64, 1): 24, (7, 1, 900): 1}


def child(module: str, *arguments: object, **variables: str) -> str:
    """Run one of the programs beside this file."""
    run = subprocess.run(
        [sys.executable, "-m", f"tests.export.probe.{module}", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), **variables},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


def key(name: str, dtype: torch.dtype, way: str, each: str) -> str:
    return f"{name}, {dtype}, {way}, {each}"


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every case with known and with own statistics, heads summed in the kernel and after it."""
    folder = tmp_path_factory.mktemp("interpreted")
    cases = {}
    for name, dtype in DTYPES:
        given = CASES[name].inputs(dtype)
        case = {"q": given.clean_queries, "k": given.k, "weights": given.weights}
        for way in WAYS:
            known = {"statistics": given.statistics()} if way == WAYS[0] else {}
            cases[key(name, dtype, way, "all")] = {**case, **known, "each": CASES[name].heads}
            if name == "odd sizes":
                cases[key(name, dtype, way, "one")] = {**case, **known, "each": 1}
    torch.save({"cases": cases, "sizes": list(HEADS)}, folder / "given.pt")
    child("interpreted", folder / "given.pt", folder / "found.pt", TRITON_INTERPRET="1")
    found: dict[str, Any] = torch.load(folder / "found.pt", weights_only=True)
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "dtype"), DTYPES)
def test_interpreted(interpreted: dict[str, Any], name: str, dtype: torch.dtype, way: str) -> None:
    found = interpreted["results"][key(name, dtype, way, "all")]
    close = DTYPES[name, dtype]
    assert_literal(found, CASES[name].inputs(dtype), rtol=close, atol=close * 0.1)
    if CASES[name].weights == "none":
        assert not found[0].any() and not found[1].any()


@pytest.mark.parametrize("way", WAYS)
def test_heads_are_summed_in_groups(interpreted: dict[str, Any], way: str) -> None:
    found = interpreted["results"]
    together, apart = (found[key("odd sizes", torch.float32, way, n)] for n in ("all", "one"))
    torch.testing.assert_close(apart, together, rtol=1e-6, atol=1e-8)


def test_how_many_heads_a_program_takes(interpreted: dict[str, Any]) -> None:
    assert interpreted["heads"] == list(HEADS.values())


def test_compiled_for_gpus_that_are_not_here() -> None:
    """On tensor cores, with copies in flight, and nothing spilled from registers."""
    lines = child("compiled", TRITON_INTERPRET="0").splitlines()
    *made, compilations = [json.loads(line) for line in lines]
    assert len(made) == 9
    # The tuner tells sizes apart, the compiler does not.
    assert compilations == {"_prompt_masses": 1, "_propagation": 1, "_row_statistics": 1}
    for each in made:
        assert each["spilled"] == 0, each
        assert each["product"] == ("wgmma" if each["capability"] == 90 else "mma.sync"), each
        assert each["shared"] <= {80: 163, 90: 227, 120: 99}[each["capability"]] * 1024, each
        # Prompt keys are read one tile at a time, as their weights tell.
        assert each["copies"] or each["kernel"] == "prompt_masses", each
