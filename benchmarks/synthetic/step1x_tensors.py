"""Names and shapes of the transformer of Step1X-Edit, in the makers' layout and in diffusers'.

Both follow from what rism reads; its reference, which has the makers' names written out, tells
whether they are right. A tensor of the diffusers layout is some rows of the makers', so both
layouts hold the same model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.synthetic.tensor_files import Layout, Rows, whole_tensors
from rism.export.families.step1x.dit import expected_shapes
from rism.export.families.step1x.sizes import ConnectorSizes, Step1XSizes
from rism.export.families.step1x.tensor_names import NAMES


@dataclass(frozen=True)
class Step1XShape:
    """Sizes of one model: the published one, or one small enough for tests.

    Attributes:
        channels: of a packed latent token, 4 x `vae_latent`.
        heads, head_dim: of the transformer; its width is their product.
        double, single: blocks of each kind.
        pooled: width of the vector that the connector gives beside its tokens.
        connector, connector_heads, connector_depth: the connector.
        vae_widths, vae_layers, vae_latent: the autoencoder.
        vision_*: the vision encoder.
        text_*: the language model; `mrope` divides half of a head among time, row and column.
        vocabulary: rows of the table of tokens.
        transformer_shards, text_shards: files that each is split into.
    """

    channels: int = 64
    heads: int = 24
    head_dim: int = 128
    double: int = 19
    single: int = 38
    pooled: int = 768
    connector: int = 4096
    connector_heads: int = 32
    connector_depth: int = 2
    vae_widths: tuple[int, ...] = (128, 256, 512, 512)
    vae_layers: int = 2
    vae_latent: int = 16
    vision_depth: int = 32
    vision_width: int = 1280
    vision_heads: int = 16
    vision_intermediate: int = 3420
    vision_full: tuple[int, ...] = (7, 15, 23, 31)
    text_blocks: int = 28
    text_width: int = 3584
    text_intermediate: int = 18944
    text_heads: int = 28
    text_kv_heads: int = 4
    mrope: tuple[int, int, int] = (16, 24, 24)
    vocabulary: int = 152064
    transformer_shards: int = 3
    text_shards: int = 5

    @property
    def width(self) -> int:
        """Of the transformer's residual stream."""
        return self.heads * self.head_dim

    @property
    def axes(self) -> tuple[int, int, int]:
        """Rotary dimensions of time, row and column."""
        return (self.head_dim // 8, 7 * self.head_dim // 16, 7 * self.head_dim // 16)

    def transformer(self, *, scaled: bool, mapping: bool = False) -> Step1XSizes:
        """Sizes of a transformer with a scale factor (1.0) or a layer for quoted tokens (1.2)."""
        return Step1XSizes(
            in_channels=self.channels,
            heads=self.heads,
            head_dim=self.head_dim,
            double=self.double,
            single=self.single,
            context=self.connector,
            connector=ConnectorSizes(
                hidden=self.text_width,
                width=self.connector,
                pooled=self.pooled,
                heads=self.connector_heads,
                depth=self.connector_depth,
            ),
            scaled=scaled,
            mapping=self.connector if mapping else 0,
        )


STEP1X = Step1XShape()
SMALL = Step1XShape(
    channels=16,
    heads=3,
    head_dim=32,
    double=2,
    single=3,
    pooled=48,
    connector=32,
    connector_heads=2,
    vae_widths=(32, 32, 32, 32),
    vae_layers=1,
    vae_latent=4,
    vision_depth=4,
    vision_width=32,
    vision_heads=2,
    vision_intermediate=48,
    vision_full=(1, 3),
    text_blocks=3,
    text_width=32,
    text_intermediate=64,
    text_heads=4,
    text_kv_heads=2,
    mrope=(2, 1, 1),
    vocabulary=2048,
    transformer_shards=2,
    text_shards=2,
)


def transformer_tensors(sizes: Step1XSizes) -> dict[str, Layout]:
    """Return the makers' transformer and connector."""
    return whole_tensors(transformer_tensors_diffusers(sizes))


def transformer_tensors_diffusers(sizes: Step1XSizes) -> dict[str, Layout]:
    """Return the same model as `Step1XEditTransformer2DModel` names it."""
    shapes = expected_shapes(sizes)
    found: dict[str, Layout] = {}
    for makers, parts in NAMES.makers_names(shapes).items():
        whole = (sum(shapes[part][0] for part in parts), *shapes[parts[0]][1:])
        start = 0
        for part in parts:
            rows = Rows(makers, whole, start, start + shapes[part][0])
            found[part] = Layout(shapes[part], (rows,))
            start = rows.stop
    for kind in ("weight", "bias"):  # shift, scale to scale, shift
        layout = found[f"norm_out.linear.{kind}"]
        [both] = layout.rows
        halves = replace(both, start=sizes.width), replace(both, stop=sizes.width)
        found[f"norm_out.linear.{kind}"] = replace(layout, rows=halves)
    return {name: found[name] for name in shapes}
