"""The fused probe without a GPU: PyTorch's attention and its statistics, operators, refusals."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.capture.models import CaptureCase as Model
from benchmarks.capture.models import RandomModel
from rism.export.attention_capture import Capture, Spans
from rism.export.errors import ExportError
from rism.export.graph.capture_graph import CaptureGraph, CaptureOptions
from rism.export.precision import PRECISIONS
from rism.export.probe import attend, operators, probe_vectors, torch_form
from rism.export.probe.attention import attention
from tests.export.probe.cases import CASES, ProbeCase, assert_literal, literal


@pytest.mark.parametrize("known", [True, False], ids=["row statistics", "own statistics"])
@pytest.mark.parametrize("name", CASES)
def test_the_algebra_is_exact(name: str, known: bool) -> None:
    """In float64 both forms are equations 1, 3 and 4 to the last digits."""
    given = CASES[name].inputs(torch.float64)
    _, statistics = attention(given.clean_queries, given.k, given.k)
    found = torch_form.probe_vectors(
        given.clean_queries, given.k, given.weights.double(), statistics if known else None
    )
    torch.testing.assert_close(found, literal(given), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-3), (torch.float16, 1e-3)]
)
@pytest.mark.parametrize("name", ["odd sizes", "three sentences", "a head of 128"])
def test_the_operators_in_a_models_types(name: str, dtype: torch.dtype, close: float) -> None:
    """The main attention's statistics go into the probe as they are."""
    given = CASES[name].inputs(dtype)
    out, statistics = attend(given.q, given.k, given.k)
    wanted = torch.nn.functional.scaled_dot_product_attention(given.q, given.k, given.k)
    torch.testing.assert_close(out, wanted.transpose(1, 2).flatten(2), rtol=0, atol=0)
    rows = statistics[:, :, -given.clean :]
    torch.testing.assert_close(rows, given.statistics(), rtol=0, atol=close)
    for known in (rows, None):
        found = probe_vectors(given.clean_queries, given.k, given.weights, known)
        assert_literal(found, given, rtol=close, atol=close * 1e-2)


def test_operators_are_what_they_say() -> None:
    """Shapes, types and strides of the real ones are those that a trace is told."""
    given = CASES["three sentences"].inputs(torch.float32)
    clean, statistics = given.clean_queries, given.statistics()
    torch.library.opcheck(attend, (given.q, given.k, given.k))
    torch.library.opcheck(probe_vectors, (clean, given.k, given.weights, statistics))
    torch.library.opcheck(probe_vectors, (clean, given.k, given.weights))


class _Largest(TorchDispatchMode):
    """The most numbers that any operator gave out."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, tuple | list) else (found,):
            if isinstance(value, torch.Tensor):
                self.numbers = max(self.numbers, value.untyped_storage().nbytes() // value.itemsize)
        return found


@pytest.mark.parametrize("known", [True, False])
def test_nothing_is_as_large_as_a_matrix_of_tokens(known: bool) -> None:
    given = ProbeCase(prompt=30, noisy=400, clean=400, dim=16).inputs(torch.float32)
    statistics = given.statistics() if known else None
    with _Largest() as largest:
        torch_form.probe_vectors(given.clean_queries, given.k, given.weights, statistics)
    assert 0 < largest.numbers <= given.k.numel() < given.clean**2


def test_arithmetic_of_both_forms() -> None:
    """With statistics: prompt and clean keys. Without: all keys and the clean ones again."""
    q = torch.empty(1, 24, 1024, 128, device="meta", dtype=torch.bfloat16)
    k = q.new_empty(1, 24, 2688, 128)
    weights, statistics = q.new_empty(1, 640), q.new_empty(1, 24, 1024)
    product = 2 * 24 * 1024 * 128
    for operator, given, expected in (
        (probe_vectors, (q, k, weights, statistics), product * (640 + 1024)),
        (probe_vectors, (q, k, weights, None), product * (2688 + 1024)),
        (attend, (k, k, k), 4 * 24 * 2688**2 * 128),
    ):
        with FlopCounterMode(display=False) as counter:
            operator(*given)
        assert counter.get_total_flops() == expected


@pytest.mark.parametrize("way", ["vectors", "shares", "shares blind"])
def test_heads_share_one_matrix_of_values(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory once, whole rows of it: what every fused kernel takes (test_gpu.py asks each)."""
    given = ProbeCase(batch=2, heads=3, dim=32, clean=64, noisy=64, prompt=16).inputs(torch.float16)
    handed: list[torch.Tensor] = []

    def watched(kernel: Callable[..., Any]) -> Callable[..., Any]:
        return lambda q, k, v: (handed.append(v), kernel(q, k, v))[1]

    sdpa = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched(sdpa))
    monkeypatch.setattr(torch_form, "attention", watched(attention))
    if way == "vectors":
        Capture(Spans(16, 64, 64), given.weights, 0, precision=PRECISIONS["fp16"]).probe(
            0, given.clean_queries, given.k
        )
    else:
        known = given.statistics() if way == "shares" else None
        torch_form.probe_vectors(given.clean_queries, given.k, given.weights, known)
    assert [v.shape[2] for v in handed] == [16 if way == "shares" else 144, 64]
    for v in handed:
        assert v.shape == (2, 3, v.shape[2], 32) and v.stride() == (v.shape[2] * 32, 0, 32, 1)
        assert v.untyped_storage().nbytes() == 2 * v.shape[2] * 32 * v.itemsize


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", ["tiny", "tiny-step1x"])
def test_a_model_captures_the_same(size: str, precision: str) -> None:
    """Both families, the last block without a main attention among them."""
    model = RandomModel(Model(size, 96), PRECISIONS[precision], "cpu")
    model.feeds["prompt_weights"] = torch.rand(1, 32, generator=torch.Generator().manual_seed(3))
    found = []
    for fused in (False, True):
        graph = CaptureGraph(
            model.step, model.spec, CaptureOptions("vectors"), model.precision, fused=fused
        )
        with torch.no_grad():
            found.append(graph.eval()(**model.feeds))
    close = 1e-5 if precision == "fp32" else 2e-3
    assert {value.dtype for value in found[1]} == {torch.float32}
    torch.testing.assert_close(found[1], found[0], rtol=close, atol=close * 1e-2)


def test_the_compiler_takes_it_whole() -> None:
    """One graph, the probe one node in each block."""
    model = RandomModel(Model("tiny", 64), PRECISIONS["fp32"], "cpu")
    graph = CaptureGraph(
        model.step, model.spec, CaptureOptions("vectors"), model.precision, fused=True
    )
    with torch.no_grad():
        program = torch.export.export(graph.eval(), (), kwargs=model.feeds, strict=False)
        again = program.module()(**model.feeds)
        wanted = graph(**model.feeds)
    probes = [node for node in program.graph.nodes if "rism.probe_vectors" in str(node.target)]
    assert len(probes) == model.spec.blocks
    torch.testing.assert_close(again, wanted)


def test_shapes_that_do_not_go_together() -> None:
    given = CASES["three sentences"].inputs(torch.float32)
    clean = given.clean_queries
    with pytest.raises(ValueError, match=r"statistics is \(3, 2, 80\), expected \(3, 2, 20\)"):
        probe_vectors(clean, given.k, given.weights, attend(given.q, given.k, given.k)[1])
    with pytest.raises(ValueError, match=r"weights is \(1, 40\), expected \(3, 40\)"):
        probe_vectors(clean, given.k, given.weights[:1])
    with pytest.raises(ValueError, match="40 prompt and 20 clean tokens in 50 keys"):
        probe_vectors(clean, given.k[:, :, 30:], given.weights)


@pytest.mark.parametrize("also", ["matrices", "token_attention"])
def test_vectors_only(also: str) -> None:
    with pytest.raises(ValueError, match="gives vectors, no matrices and no tokens' attention"):
        Capture(Spans(2, 3, 3), torch.ones(1, 2), 0, fused=True, **{also: True})


def test_without_triton_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, forget_modules: Callable[..., None]
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    forget_modules("rism.export.probe.launch", "rism.export.probe.kernels")
    with pytest.raises(ExportError, match=r"not installed: pip install .*\[probe\]'$"):
        operators._launch()
