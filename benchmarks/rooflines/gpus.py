"""Rates of the cards, as their maker's datasheets give them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuRates:
    """Dense rates with float32 accumulation, and bandwidth.

    Attributes:
        name: the card.
        bf16: operations a second; the same for float16.
        fp8: likewise; None where there is no FP8.
        bandwidth: bytes a second.
        processors: multiprocessors.
        clock: boost, Hz.
        source: the document.
    """

    name: str
    bf16: float
    fp8: float | None
    bandwidth: float
    processors: int
    clock: float
    source: str

    @property
    def exponentials(self) -> float:
        """Exponentials a second: 16 for each multiprocessor and cycle (CUDA C++ guide)."""
        return 16 * self.processors * self.clock


_ADA = "Ada architecture whitepaper, float32 accumulation"
_BLACKWELL = "RTX Blackwell whitepaper, float32 accumulation"
GPUS = {
    "A100": GpuRates("A100 80GB SXM", 312e12, None, 2.039e12, 108, 1.41e9, "A100 datasheet"),
    "H100": GpuRates("H100 SXM", 989.4e12, 1978.9e12, 3.35e12, 132, 1.83e9, "H100 datasheet"),
    "H200": GpuRates("H200 SXM", 989.4e12, 1978.9e12, 4.8e12, 132, 1.83e9, "H200 datasheet"),
    "RTX 4090": GpuRates("RTX 4090", 165.2e12, 330.3e12, 1.008e12, 128, 2.52e9, _ADA),
    "RTX 5090": GpuRates("RTX 5090", 209.5e12, 419e12, 1.792e12, 170, 2.407e9, _BLACKWELL),
}


def known_gpu(name: str) -> str | None:
    """Return the key in `GPUS` of a device by the name that its driver gives."""
    return next((gpu for gpu in GPUS if gpu in name), None)
