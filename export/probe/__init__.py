"""The fused probe: a_l and T_l a_l of a block without anything of size N_v x N (docs/probe.md).

Two operators, for PyTorch run as it is and for torch.compile:

- `attend`: the main attention, with the log-sum-exp of its rows;
- `probe_vectors`: what the method reads off the clean rows, from queries, keys and that.

On CUDA the second is two Triton kernels (`kernels`, `launch`), which need `rism-seg[probe]`; on the
CPU both are PyTorch's own attention (`attention`, `torch_form`).
"""

from rism.export.probe.operators import attend, probe_vectors

__all__ = ["attend", "probe_vectors"]
