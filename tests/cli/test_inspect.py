import json
from pathlib import Path
from typing import Any

from tests.cli.conftest import invoke


def test_it_prints_what_a_bundle_is(tiny_bundle: Path, reseal: Any) -> None:
    figures = {"transformer.vectors": {"features": {"max_abs": 1.2e-6, "limit": 1e-5}}}
    reseal(tiny_bundle, lambda data: data.update(parity=figures))
    shown = invoke("inspect", tiny_bundle)
    for line in (
        f"bundle     {tiny_bundle} (format 1.0)",
        "model      tiny (test)",
        'prompt     "remove {expression}", at most 8 tokens',
        "graph      transformer.vectors (transformer.vectors.onnx), the default",
        "           <- clean_latents float32 (batch, n_v, 3) as clean",
        "           -> features float32 (batch, n_v, 3)",
        "parity     transformer.vectors features: max_abs 1.2e-06, limit 1e-05",
    ):
        assert line in shown.stdout.splitlines()
    assert "noise.f32  3.5 KiB  sha256 " in shown.stdout


def test_json(tiny_bundle: Path) -> None:
    record = json.loads(invoke("inspect", tiny_bundle, "--json").stdout)
    assert record["model"]["name"] == "tiny"
    assert record["verified"] is True
    assert record["files"]["noise.f32"]["size"] == 3600
    assert record["graphs"]["transformer.scores"]["inputs"]["tau"]["shape"] == [1]


def test_fixed_sizes(static_bundle: Path) -> None:
    shown = invoke("inspect", static_bundle)
    lines = shown.stdout.splitlines()
    assert "geometry   fixed sizes 128 x 128, 160 x 96, 96 x 160, tokens of 8 px" in lines
    name, file = "transformer.vectors@160x96", "transformer.vectors.160x96.onnx"
    assert f"graph      {name} ({file}), the default" in lines
    assert "           <- image float32 (1, 3, 96, 160)" in lines
    record = json.loads(invoke("inspect", static_bundle, "--json").stdout)
    assert record["geometry"]["sizes"] == [[128, 128], [160, 96], [96, 160]]


def test_parity_of_any_shape_is_printed(tiny_bundle: Path, reseal: Any) -> None:
    reseal(tiny_bundle, lambda data: data.update(parity={"a": 1, "b": {"c": 2.0}, "d": [3]}))
    shown = invoke("inspect", tiny_bundle)
    assert [line for line in shown.stdout.splitlines() if line.startswith("parity")] == [
        "parity     a : 1",
        "parity     b c: 2",
        "parity     d : [3]",
    ]


def test_a_damaged_file_is_found(tiny_bundle: Path) -> None:
    noise = bytearray((tiny_bundle / "noise.f32").read_bytes())
    noise[7] ^= 1
    (tiny_bundle / "noise.f32").write_bytes(noise)
    shown = invoke("inspect", tiny_bundle, code=1)
    assert shown.stdout == ""
    assert "'noise.f32' has sha256" in shown.stderr
