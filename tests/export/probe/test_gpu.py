"""On a machine with a GPU: the kernels as they are compiled there, against float64."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.capture.block import ProbeBlock
from benchmarks.rooflines.probe_bounds import SHAPES
from rism.export.precision import PRECISIONS
from rism.export.probe import probe_vectors
from rism.export.probe.attention import attention
from tests.export.probe.cases import CASES, ProbeCase, assert_literal

pytestmark = pytest.mark.gpu
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


@pytest.mark.parametrize("known", [True, False], ids=["row statistics", "own statistics"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_kernels(name: str, dtype: torch.dtype, known: bool) -> None:
    given = CASES[name].inputs(dtype, "cuda")
    statistics = given.statistics() if known else None
    found = probe_vectors(given.clean_queries, given.k, given.weights, statistics)
    close = 5e-4 if name == "loud scores" else 5e-6
    assert_literal(found, given, rtol=close, atol=close * 0.1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("clean", [64, 77])
def test_statistics_of_every_attention(backend: str, clean: int) -> None:
    """Natural logarithms over all keys, whatever a kernel pads its rows to."""
    case = ProbeCase(heads=3, prompt=21, noisy=clean, clean=clean, dim=128, batch=2)
    given = case.inputs(torch.bfloat16, "cuda")
    with sdpa_kernel(BACKENDS[backend]):
        out, statistics = attention(given.q, given.k, given.k)
        wanted = torch.nn.functional.scaled_dot_product_attention(given.q, given.k, given.k)
    torch.testing.assert_close(out, wanted)  # cuDNN may plan otherwise when it tells them
    assert statistics.shape == given.q.shape[:3]
    rows = statistics[:, :, -clean:]
    torch.testing.assert_close(rows, given.statistics(), rtol=0, atol=1e-4)
    found = probe_vectors(given.clean_queries, given.k, given.weights, rows)
    assert_literal(found, given, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_that_all_heads_share(backend: str) -> None:
    """A head stride of 0, as the probes have it, is read as if each head had its own."""
    case = ProbeCase(heads=3, prompt=21, noisy=77, clean=77, dim=128, batch=2)
    given = case.inputs(torch.bfloat16, "cuda")
    q, k = given.q, given.k
    values = k[:, 0].contiguous().unsqueeze(1).expand(-1, 3, -1, -1)
    assert values.stride(1) == 0
    with sdpa_kernel(BACKENDS[backend]):
        for run in (torch.nn.functional.scaled_dot_product_attention, attention):
            torch.testing.assert_close(run(q, k, values), run(q, k, values.contiguous()))


@pytest.mark.parametrize("case", SHAPES)
def test_real_sizes(case: str) -> None:
    """Every way of the benchmark, at the sizes of the models; the same numbers each time."""
    with torch.no_grad():
        block = ProbeBlock(SHAPES[case], "cuda")
        for way, (run, weights) in block.ways().items():
            close = 2e-3 if way in ("vectors", "shares") else 1e-4
            found = run()
            for value, wanted in zip(found, block.reference(weights), strict=True):
                error = (value.double() - wanted).abs().max() / wanted.abs().max()
                assert error < close, (way, error)
            if "fused" in way:
                assert all(torch.equal(*pair) for pair in zip(found, run(), strict=True)), way


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "torch.compile"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", ["tiny", "tiny-step1x"])
def test_a_model_captures_the_same(size: str, precision: str, compiled: bool) -> None:
    pytest.importorskip("diffusers")
    from benchmarks.capture.models import CaptureCase as Model
    from benchmarks.capture.models import RandomModel
    from rism.export.graph.capture_graph import CaptureGraph, CaptureOptions

    model = RandomModel(Model(size, 128), PRECISIONS[precision], "cuda")
    found = []
    for fused in (False, True):
        graph = CaptureGraph(
            model.step, model.spec, CaptureOptions("vectors"), model.precision, fused=fused
        ).eval()
        run = torch.compile(graph) if compiled and fused else graph
        with torch.no_grad():
            found.append(run(**model.feeds))
    close = 1e-4 if precision == "fp32" else 2e-2
    for value, wanted in zip(found[1], found[0], strict=True):
        assert (value - wanted).abs().max() < close * wanted.abs().max()


def test_nothing_is_as_large_as_a_matrix_of_tokens() -> None:
    """Of a block of 9B at 1024, the N_v x N_v scores alone would be 2 GiB in float32."""
    shape = SHAPES["9b@1024"]
    with torch.no_grad():
        block = ProbeBlock(shape, "cuda")
        block.fused(block.all, block.rows)  # tuned
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        block.fused(block.all, block.rows)
        taken = torch.cuda.max_memory_allocated() - before
    assert taken < 8 * shape.heads * shape.clean * 4
