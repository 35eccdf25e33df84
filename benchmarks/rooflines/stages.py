"""Lower bounds of each stage of an image and an expression, on each card.

A stage takes at least its operations over the arithmetic rate, and at least its bytes over the
memory's bandwidth; weights are read once a run. docs/performance.md derives the formulas.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.markdown import markdown_table
from benchmarks.rooflines.gpus import GPUS, GpuRates

TERA = 1e12
_TOKEN_PX = 16


@dataclass(frozen=True)
class Transformer:
    """A diffusion transformer over [prompt; noisy; clean].

    Attributes:
        name: the model.
        double: double-stream blocks.
        single: single-stream blocks.
        width: D.
        per_token: weights that a token meets in a block, in D^2: 4 of attention and those of the
            MLP, which both kinds of block have alike.
        modulation: weights of the modulation of a block, in D^2: double, single. They meet one
            vector, so they are bytes and hardly operations.
        prompt: N_p.
    """

    name: str
    double: int
    single: int
    width: int
    per_token: int
    modulation: tuple[int, int]
    prompt: int

    @property
    def blocks(self) -> int:
        """L."""
        return self.double + self.single

    @property
    def weights(self) -> int:
        """Parameters of all blocks; what stands around them is under one per cent."""
        double = 2 * self.per_token + self.modulation[0]
        single = self.per_token + self.modulation[1]
        return (self.double * double + self.single * single) * self.width**2

    def products(self, clean: int) -> float:
        """Operations of the products with weights: L 2 c D^2 N, c weights in D^2 a token."""
        return self.blocks * 2 * self.per_token * self.width**2 * (self.prompt + 2 * clean)

    def attention(self, clean: int) -> float:
        """Operations of the attentions: L 4 N^2 D."""
        return self.blocks * 4 * (self.prompt + 2 * clean) ** 2 * self.width

    def two_attentions(self, clean: int) -> float:
        """Operations of today's probes: values padded to a head's width, all keys, then clean ones.

        L (4 N_v N D + 4 N_v^2 D).
        """
        count = self.prompt + 2 * clean
        return self.blocks * 4 * clean * (count + clean) * self.width

    def fused_probe(self, clean: int) -> float:
        """Operations of a probe that knows the main attention's row sums: clean keys once.

        L (2 N_v^2 D + 2 N_v N_w D), N_w = N_p where all prompt tokens have a weight.
        """
        return self.blocks * 2 * clean * (clean + self.prompt) * self.width


KLEIN_4B = Transformer("FLUX.2-klein-4B", 5, 20, 3072, 13, (0, 0), 512)
KLEIN_9B = Transformer("FLUX.2-klein-9B", 8, 24, 4096, 13, (0, 0), 512)
STEP1X = Transformer("Step1X-Edit 1.0", 19, 38, 3072, 12, (12, 3), 640)


@dataclass(frozen=True)
class StageCase:
    """A model at the area of an image."""

    model: Transformer
    side_px: int

    def __str__(self) -> str:
        return f"{self.model.name} at {self.side_px}"

    @property
    def clean(self) -> int:
        """N_v."""
        return (self.side_px // _TOKEN_PX) ** 2


CASES = tuple(StageCase(model, side) for model in (STEP1X, KLEIN_9B) for side in (512, 1024))


@dataclass(frozen=True)
class StageCost:
    """Operations and bytes of a stage, once.

    Attributes:
        name: the stage.
        products: operations with weights, which may be FP8.
        nbytes: bytes that are read and written at least, weights in 16 bits.
        attention: operations between activations, which stay in 16 bits.
    """

    name: str
    products: float
    nbytes: float
    attention: float = 0.0

    @property
    def operations(self) -> float:
        """All of them."""
        return self.products + self.attention

    def seconds(self, gpu: GpuRates, precision: str = "bf16") -> float | None:
        """The floor on a GPU; None where it has no such precision."""
        rate = getattr(gpu, precision)
        if rate is None:
            return None
        busy = self.products / rate + self.attention / gpu.bf16
        nbytes = self.nbytes / 2 if precision == "fp8" else self.nbytes
        return float(max(busy, nbytes / gpu.bandwidth))


@dataclass(frozen=True)
class _Language:
    """A decoder: blocks that run, width, width of keys, of the MLP, tokens."""

    blocks: int
    width: int
    keys: int
    mlp: int
    tokens: int

    def stage(self, name: str) -> StageCost:
        weights = 2 * self.width**2 + 2 * self.width * self.keys + 3 * self.width * self.mlp
        return StageCost(
            name,
            self.blocks * 2 * weights * self.tokens,
            2 * weights * self.blocks,
            self.blocks * 4 * self.tokens**2 * self.width,
        )


# Qwen3-8B up to the last hidden state that is read; Qwen2.5-VL-7B with the prefix of 217 tokens, an
# image of 324 and an instruction; its tower over 4 x 324 patches (attention within windows).
_TEXT = {
    "FLUX.2-klein-9B": (_Language(27, 4096, 1024, 12288, 512),),
    "Step1X-Edit 1.0": (
        _Language(28, 3584, 512, 18944, 564),
        _Language(32, 1280, 1280, 3420, 1296),
    ),
}


def stages(case: StageCase, *, vae_operations: float | None = None) -> Iterator[StageCost]:
    """Give every stage of one image and one expression in 16 bits.

    Args:
        case: model and size.
        vae_operations: of the VAE encoder, counted; None to leave it out.
    """
    model, clean = case.model, case.clean
    for name, language in zip(("text encoder", "vision encoder"), _TEXT[model.name], strict=False):
        yield language.stage(name)
    if vae_operations is not None:
        # Its first levels are of the image's size: 3 kernels a layer read and write 128 channels.
        traffic = 2 * 2 * 128 * case.side_px**2 * 3 * 5
        yield StageCost("VAE encoder", vae_operations, traffic)
    weights = 2 * model.weights
    products, attention = model.products(clean), model.attention(clean)
    for name, probes in (
        ("DiT without capture", 0.0),
        ("DiT, capture by two attentions", model.two_attentions(clean)),
        ("DiT, capture by the fused probe", model.fused_probe(clean)),
    ):
        yield StageCost(name, products, weights, attention + probes)
    features = 4 * clean * model.width
    vectors = 2 * 4 * model.blocks * clean
    yield StageCost(
        "post-processing", 6 * clean * model.width, 2 * features + vectors + case.side_px**2
    )


def count_vae(case: StageCase) -> float:
    """Count the VAE encoder's operations from its shapes; nothing is computed."""
    import torch
    from diffusers import AutoencoderKLFlux2
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.synthetic.step1x_parts import empty_vae
    from benchmarks.synthetic.step1x_tensors import STEP1X as SHAPE

    with torch.device("meta"):
        vae: Any = empty_vae(SHAPE) if case.model is STEP1X else AutoencoderKLFlux2()
        image = torch.empty(1, 3, case.side_px, case.side_px)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        vae.encoder(image)
    return float(counter.get_total_flops())


def table(case: StageCase, found: list[StageCost]) -> str:
    """Floors of one case in milliseconds, as Markdown."""
    rows = []
    for stage in found:
        cells = [stage.name, _short(stage.operations / TERA), _short(stage.nbytes / 1e9)]
        for gpu in GPUS.values():
            bf16, fp8 = (stage.seconds(gpu, precision) for precision in ("bf16", "fp8"))
            low = f" ({_short(fp8 * 1e3)})" if fp8 is not None and "DiT" in stage.name else ""
            cells.append(f"{_short((bf16 or 0) * 1e3)}{low}")
        rows.append(cells)
    head = ["stage", "TFLOP", "GB", *(gpu.name for gpu in GPUS.values())]
    return f"**{case}**\n\n{markdown_table(head, rows)}"


def _short(value: float) -> str:
    """Three digits, and no exponent."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 1e-3 else "0"
