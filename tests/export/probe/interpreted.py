"""Run in a process of its own: `python -m tests.export.probe.interpreted GIVEN FOUND`.

Triton decides when it is imported whether it interprets kernels.
"""

import sys

import torch
import triton.language as tl

from rism.export.probe import kernels, launch


def _range(*bounds: object) -> range:
    """What kernels count by: before Triton 3.7, its interpreter's numbers are arrays of one.

    NumPy takes such an array for a number up to 2.3 only (triton-lang/triton issue 9171).
    """
    return range(*(b.handle.data.item() if isinstance(b, tl.tensor) else b for b in bounds))


kernels.range = _range


def main(given: str, found: str) -> None:
    """Run every case of a file, and write what came of it into another."""
    read = torch.load(given, weights_only=True)
    results = {
        name: launch.probe_vectors(
            case["q"], case["k"], case["weights"], case.get("statistics"), heads_each=case["each"]
        )
        for name, case in read["cases"].items()
    }
    heads = [launch.heads_per_program(*sizes) for sizes in read["sizes"]]
    torch.save({"results": results, "heads": heads}, found)


if __name__ == "__main__":
    main(*sys.argv[1:])
