"""The Triton kernels, launched: which tiles, how many programs, and what is summed after them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import triton

from rism.export.errors import ExportError
from rism.export.probe import kernels

# Queries x keys of a program, warps, stages of the pipeline; the fastest is found once for each
# size class. The first two keep a row's scores in one warp where mma.sync serves (8.0, 8.9, 12.x),
# the others where wgmma does (9.0); docs/probe.md has their instructions counted.
TILES = ((128, 32, 4, 3), (256, 32, 8, 3), (64, 64, 4, 3), (128, 64, 4, 3), (128, 128, 8, 3))
# Exact products of float32 know no tensor cores, and larger tiles overflow the registers.
FLOAT32_TILES = ((32, 32, 4, 2), (64, 32, 4, 2))
_INTERPRETED_TILES = ((32, 32, 1, 1),)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# With fewer programs than this for each multiprocessor, many have nothing to do at the end.
_PROGRAMS_EACH = 4
_INTERPRETED = bool(triton.knobs.runtime.interpret)
_TILES = _INTERPRETED_TILES if _INTERPRETED else (*TILES, *FLOAT32_TILES)
_ROWS = max(rows for rows, *_ in _TILES)
_KEYS = max(keys for _, keys, *_ in _TILES)  # a multiple of every other


def _tuned(kernel: Any) -> Any:
    configs = [
        triton.Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps=warps, num_stages=stages)
        for m, n, warps, stages in _TILES
    ]
    prune = {"early_config_prune": _fitting}
    return triton.autotune(configs, key=["size", "WIDTH"], prune_configs_by=prune)(kernel)


def _fitting(configs: list[Any], given: dict[str, Any], **_: object) -> list[Any]:
    """Keep the tiles for the type of the queries."""
    wide = given["q"].dtype == torch.float32
    return [each for each in configs if (_tile(each) in FLOAT32_TILES) == wide]


def _tile(config: Any) -> tuple[int, int, int, int]:
    sizes = config.kwargs
    return sizes["BLOCK_M"], sizes["BLOCK_N"], config.num_warps, config.num_stages


_prompt_masses = _tuned(kernels.prompt_masses)
_propagation = _tuned(kernels.propagation)
_row_statistics = _tuned(kernels.row_statistics)


def heads_per_program(heads: int, programs: int, processors: int) -> int:
    """Return over how many heads one program sums: a divisor of `heads`.

    The more, the less is left to sum; the fewer, the busier the device.

    Args:
        heads: of the attention.
        programs: that there are for one head.
        processors: multiprocessors of the device.
    """
    wanted = _PROGRAMS_EACH * processors
    fitting = [each for each in range(1, heads + 1) if heads % each == 0]
    return max((n for n in fitting if programs * (heads // n) >= wanted), default=1)


def probe_vectors(
    q: torch.Tensor,
    k: torch.Tensor,
    weights: torch.Tensor,
    statistics: torch.Tensor | None = None,
    *,
    heads_each: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """a_l and T_l a_l, as `rism.export.probe.probe_vectors`.

    Args:
        q: (B, heads, N_v, d) float16, bfloat16 or float32, the clean tokens' queries.
        k: (B, heads, N, d) of the same type, all keys: [prompt; noisy; clean].
        weights: w, (B, N_p) float32.
        statistics: (B, heads, N_v) float32, L_i of these rows; None to find them out.
        heads_each: heads that a program sums over, a divisor of them all; None asks the device.

    Returns:
        Two of (B, N_v) float32.

    Raises:
        ExportError: Another type.
    """
    if q.dtype not in _DTYPES or k.dtype != q.dtype:
        raise ExportError(
            f"queries in {q.dtype} and keys in {k.dtype}: the fused probe takes both in float16, "
            "bfloat16 or float32; cast them, or use rism.export.probe.torch_form"
        )
    if _INTERPRETED and q.dtype == torch.bfloat16:
        # The interpreter multiplies bfloat16 as the integers that it stores it in.
        q, k = q.float(), k.float()
    with torch.cuda.device(q.device) if q.is_cuda else nullcontext():
        launch = _Launch(_rows(q), _rows(k), heads_each or _heads_each(q))
        return launch.vectors(_rows(weights.float()), statistics)


def _heads_each(q: torch.Tensor) -> int:
    batch, heads, rows, _ = q.shape
    processors = torch.cuda.get_device_properties(q.device).multi_processor_count
    return heads_per_program(heads, batch * triton.cdiv(rows, _ROWS), processors)


class _Launch:
    """What the launches of one call have in common."""

    def __init__(self, q: torch.Tensor, k: torch.Tensor, heads_each: int) -> None:
        self.q, self.k, self.heads_each = q, k, heads_each
        self.batch, self.heads, self.clean, dim = q.shape
        self.groups = self.heads // heads_each
        self.padded = triton.cdiv(self.clean, _KEYS) * _KEYS
        self.scale, self.share = dim**-0.5, 1 / self.heads
        self.size = triton.next_power_of_2(self.clean)  # what the tuner tells apart
        self.constants = {
            "DIM": dim,
            "WIDTH": max(16, triton.next_power_of_2(dim)),
            # Products of float32 are exact only when they are asked to be.
            "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
            "enable_fp_fusion": True,
        }

    def vectors(
        self, weights: torch.Tensor, statistics: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, prompt = self.q, self.k, weights.shape[1]
        masses = self._empty(self.groups, self.padded)
        if statistics is None:
            kernel, spans = _row_statistics, [prompt, k.shape[2]]
            levels = self._empty(self.heads, self.clean)
        else:
            kernel, spans = _prompt_masses, [prompt]
            levels = _rows(statistics)
        kernel[self._grid(self.padded)](
            q, k, weights, levels, masses,
            *q.stride()[:3], *k.stride()[:3], weights.stride(0),
            *levels.stride()[:2], *masses.stride()[:2],
            self.clean, self.padded, *spans, self.heads_each, self.scale, self.share, self.size,
            **self.constants,
        )  # fmt: skip
        a = _over_groups(masses)
        keys = k[:, :, k.shape[2] - self.clean :]
        sums = self._empty(self.groups, 2, self.clean)
        _propagation[self._grid(self.clean)](
            q, keys, a, levels, sums,
            *q.stride()[:3], *keys.stride()[:3], a.stride(0),
            *levels.stride()[:2], *sums.stride()[:3],
            self.clean, self.clean, self.heads_each, self.scale, self.share, self.size,
            **self.constants,
        )  # fmt: skip
        spread, mass = _over_groups(sums).unbind(1)
        return a[:, : self.clean].contiguous(), spread / mass

    def _grid(self, rows: int) -> Callable[[dict[str, int]], tuple[int, int, int]]:
        return lambda tile: (triton.cdiv(rows, tile["BLOCK_M"]), self.groups, self.batch)

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(self.batch, *shape, dtype=torch.float32, device=self.q.device)


def _over_groups(sums: torch.Tensor) -> torch.Tensor:
    """(B, groups, ...) to (B, ...), in the same order every time."""
    return sums.squeeze(1) if sums.shape[1] == 1 else sums.sum(1)


def _rows(values: torch.Tensor) -> torch.Tensor:
    """Rows whose numbers lie side by side; the rest of a layout is as it is."""
    return values if values.stride(-1) == 1 else values.contiguous()
