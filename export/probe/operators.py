"""The probe as two operators of PyTorch: an implementation for each device, shapes, arithmetic.

As operators they pass through torch.export and torch.compile whole, and are counted by
`torch.utils.flop_counter`; `rism::probe_vectors` is the node that a plugin would stand for.
"""

from types import ModuleType

import torch
from torch.utils.flop_counter import register_flop_formula

from rism.export.errors import ExportError
from rism.export.probe import torch_form
from rism.export.probe.attention import attention
from rism.runtime.distribution import install_hint

Shape = tuple[int, ...]


@torch.library.custom_op("rism::attend", mutates_args=())
def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention, and the log-sum-exp of its rows.

    Args:
        q: (B, heads, N, d), on the CPU or a CUDA device.
        k: likewise.
        v: likewise.

    Returns:
        (B, N, heads * d), heads concatenated, and L, (B, heads, N): natural logarithms, float32
        (float64 if the inputs are).

    Raises:
        ExportError: No kernel on this device takes these shapes and this type.
    """
    out, statistics = attention(q, k, v)
    return out.transpose(1, 2).flatten(2).contiguous(), statistics.contiguous()


@attend.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    del k
    batch, heads, tokens, _ = q.shape
    return q.new_empty(batch, tokens, heads * v.shape[-1]), _statistics(q)


@torch.library.custom_op("rism::probe_vectors", mutates_args=(), device_types="cpu")
def probe_vectors(
    q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor, statistics: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the method reads off one block: a_l and T_l a_l (docs/bundle.md, METHOD).

    A = mean_h exp(q k^T / sqrt(d) - L): a_l = A_vp w, and T_l a_l = (A_vv a_l) / (A_vv 1).

    Args:
        q: (B, heads, N_v, d), the clean tokens' queries, after normalisation and rotary
            embedding.
        k: (B, heads, N, d), all keys: [prompt; noisy; clean].
        weights: w, (B, N_p) float32; prompt keys of weight zero cost nothing on CUDA.
        statistics: (B, heads, N_v), L of these rows as `attend` gives it: noisy keys are then
            not visited. None to find it out in one pass over all keys.

    Returns:
        a_l and T_l a_l, (B, N_v) float32 each (float64 if the inputs are).

    Raises:
        ValueError: Shapes that do not go together.
        ExportError: On CUDA: triton is not installed, or queries and keys are in a type that
            its kernels do not take.
    """
    _check(q, k, weights, statistics)
    if q.dtype in (torch.float16, torch.bfloat16):
        q, k = q.float(), k.float()
    a, propagated = torch_form.probe_vectors(q, k, weights.to(q.dtype), statistics)
    return a.contiguous(), propagated.contiguous()


@probe_vectors.register_kernel("cuda")
def _(
    q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor, statistics: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    _check(q, k, weights, statistics)
    a, propagated = _launch().probe_vectors(q, k, weights, statistics)
    return a, propagated


@probe_vectors.register_fake
def _(
    q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor, statistics: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    del k, weights, statistics
    empty = _statistics(q)[:, 0]
    return torch.empty_like(empty), torch.empty_like(empty)


def _check(
    q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor, statistics: torch.Tensor | None
) -> None:
    """A kernel would read other numbers than were meant, and say nothing."""
    batch, heads, clean, dim = q.shape
    keys = k.shape[2]
    shapes = {
        "k": (k.shape, (batch, heads, keys, dim)),
        "weights": (weights.shape, (batch, weights.shape[-1])),
        "statistics": (q.shape[:3] if statistics is None else statistics.shape, q.shape[:3]),
    }
    for name, (found, expected) in shapes.items():
        if tuple(found) != tuple(expected):
            raise ValueError(f"{name} is {tuple(found)}, expected {tuple(expected)}")
    if not 0 < weights.shape[1] <= keys - clean:
        raise ValueError(
            f"{weights.shape[1]} prompt and {clean} clean tokens in {keys} keys, expected at least "
            "one prompt token and no more tokens than keys"
        )


def _statistics(q: torch.Tensor) -> torch.Tensor:
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape[:3], dtype=dtype)


def _launch() -> ModuleType:
    try:
        from rism.export.probe import launch
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise ExportError(
            "the fused probe needs triton, the compiler of GPU kernels, which is not installed: "
            f"{install_hint('probe')}"
        ) from error
    return launch


@register_flop_formula(torch.ops.rism.attend)
def _attend_flop(q: Shape, k: Shape, v: Shape, *_: object, **__: object) -> int:
    batch, heads, rows, dim = q
    return 2 * batch * heads * rows * k[2] * (dim + v[3])


@register_flop_formula(torch.ops.rism.probe_vectors)
def _probe_flop(
    q: Shape, k: Shape, weights: Shape, statistics: Shape | None = None, **_: object
) -> int:
    """Count products of queries and keys; every prompt key, as if each had a weight."""
    batch, heads, rows, dim = q
    before = k[2] if statistics is None else weights[1]
    return 2 * batch * heads * rows * (before + rows) * dim
