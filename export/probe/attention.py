"""Attention that also says its rows' log-sum-exp, in PyTorch's own kernels.

The kernels behind `scaled_dot_product_attention` compute L_i = log sum_j exp(s_ij) anyway, for
training; the public function drops it. Here the same kernel is chosen and keeps it.
"""

import torch
from torch.nn.attention import SDPBackend

from rism.export.errors import ExportError

_aten = torch.ops.aten
_FLASH = SDPBackend.FLASH_ATTENTION.value


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(q k^T / sqrt(d)) v, and the logarithms of what its rows were divided by.

    Args:
        q: (B, heads, n, d), on the CPU or a CUDA device.
        k: (B, heads, N, d).
        v: (B, heads, N, d), as wide as `k`: fused kernels know no other.

    Returns:
        (B, heads, n, d) in the inputs' type, and (B, heads, n): natural logarithms, float32
        (float64 if the inputs are).

    Raises:
        ExportError: No kernel on this device takes these shapes and this type.
    """
    if q.device.type == "cpu":
        out, statistics = _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        return out, statistics
    found: tuple[torch.Tensor, ...]
    # Where there are no numbers, only shapes and arithmetic are asked for: any kernel has them.
    chosen = _FLASH if q.is_meta else torch._fused_sdp_choice(q, k, v)
    if chosen == SDPBackend.CUDNN_ATTENTION.value:
        found = _aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
    elif chosen == _FLASH and q.shape[-1] % 8 == 0:
        found = _aten._scaled_dot_product_flash_attention(q, k, v)
    elif chosen == SDPBackend.EFFICIENT_ATTENTION.value:
        found = _aten._scaled_dot_product_efficient_attention(q, k, v, None, True)
    else:
        raise ExportError(
            f"attention over heads of {q.shape[-1]} in {q.dtype} has no fused kernel on "
            f"{q.device} that tells its rows' log-sum-exp, expected heads of a multiple of 8: "
            "capture without fused=True"
        )
    # cuDNN's has an axis more, the efficient one's is rounded up to whole tiles.
    return found[0], found[1].reshape(*q.shape[:2], -1)[..., : q.shape[2]]
