"""How a manifest says to turn an expression into tokens (docs/bundle.md, step 4)."""

from collections.abc import Container
from dataclasses import dataclass

from rism.runtime.bundle.json_reader import Node

MAX_PROMPT_TOKENS = 8192
MAX_PIXELS = 2**24
RESAMPLES = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
PADDINGS = ("tokens", "zeros", "none")
POSITIONS = ("none", "grid")
QUOTE_STYLES = ("toggle", "paired")
ARITHMETICS = ("pillow", "torchvision")


@dataclass(frozen=True)
class QuoteRules:
    """Which quoted words the tokenizer gets a character at a time; see `runtime/prompt/quotes`.

    Attributes:
        style: "toggle" or "paired".
        start: the first character of the rendered prompt (with one image token in it) at which
            a quote counts.
    """

    style: str
    start: int


@dataclass(frozen=True)
class VisionRules:
    """How the vision encoder gets the image; see `runtime/image/vision_patches`.

    Attributes:
        image_token: text of the token that stands for the image, once in prefix or suffix.
        view_resample: filter that brings the image to the model's size for the vision encoder.
        align: whether the view then goes to the nearest multiples of a merged patch, before the
            limits are looked at.
        resample: filter of the steps after `view_resample`.
        min_pixels, max_pixels: the limits.
        patch_px: side of a patch, pixels.
        merge: patches along one side of a merged one, which is one token.
        frames: how often a patch holds the still image.
        mean, std: of the normalisation, RGB.
        arithmetic: whose resize brings the view within the limits: "pillow" or "torchvision".
    """

    image_token: str
    view_resample: str
    align: bool
    resample: str
    min_pixels: int
    max_pixels: int
    patch_px: int
    merge: int
    frames: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    arithmetic: str = "pillow"

    @property
    def cell_px(self) -> int:
        """Side of a merged patch, pixels."""
        return self.patch_px * self.merge


@dataclass(frozen=True)
class PromptRules:
    """How an expression becomes tokens; see docs/bundle.md, step 4.

    Attributes:
        template: the instruction, with {expression} in it once.
        prefix, suffix: what stands around it.
        max_length: most tokens the transformer gets; with padding "tokens" and "zeros", N_p.
        pad_id: token that fills the text encoder's input up.
        tokenizer: file.
        drop: tokens at the beginning that the text encoder sees and the transformer does not.
        padding: what comes after the last token up to `max_length`: "tokens" of `pad_id` through
            the text encoder, embeddings of "zeros", or "none" at all, so that N_p is the number
            of tokens.
        shared_padding: with "zeros": the transformer takes fewer embeddings than `max_length`, and
            repeats the last one, which is then of padding, up to it.
        unseen_id: a token that has no position of its own, and is not counted; None for no such
            token.
        unseen_attended: whether others attend to it nevertheless.
        unseen_position: what it has instead, on every rotary axis.
        positions: "grid" where the transformer takes a position for every prompt token: those
            of the image's tokens lie on its own grid.
        grid_offset_px: of that: centre of the first token, pixels.
        quotes: None where text is tokenised as it is.
        vision: None where the text encoder does not get the image.
    """

    template: str
    prefix: str
    suffix: str
    max_length: int
    pad_id: int
    tokenizer: str
    drop: int = 0
    padding: str = "tokens"
    shared_padding: bool = False
    unseen_id: int | None = None
    unseen_attended: bool = True
    unseen_position: int = 0
    positions: str = "none"
    grid_offset_px: float = 0.0
    quotes: QuoteRules | None = None
    vision: VisionRules | None = None


def parse_prompt(node: Node, files: Container[str]) -> PromptRules:
    """Read the object "prompt" of a manifest.

    Raises:
        BundleError: a key is missing, of the wrong type or out of range.
    """
    rules = PromptRules(
        template=node.text("template", multiline=True),
        prefix=node.text("prefix", default="", multiline=True),
        suffix=node.text("suffix", default="", multiline=True),
        max_length=node.integer("max_length", 1, MAX_PROMPT_TOKENS),
        pad_id=node.integer("pad_id", 0, 2**31 - 1),
        tokenizer=node.listed_file("tokenizer", files),
        drop=node.integer("drop", 0, MAX_PROMPT_TOKENS, default=0),
        padding=node.choice("padding", PADDINGS, default="tokens"),
        shared_padding=node.boolean("shared_padding", default=False),
        unseen_id=(
            None if node.raw("unseen_id") is None else node.integer("unseen_id", 0, 2**31 - 1)
        ),
        unseen_attended=node.boolean("unseen_attended", default=True),
        unseen_position=node.integer("unseen_position", 0, MAX_PROMPT_TOKENS, default=0),
        positions=node.choice("positions", POSITIONS, default="none"),
        grid_offset_px=node.number("grid_offset_px", -512.0, 512.0, default=0.0),
        quotes=_quotes(node.node("quotes")) if node.raw("quotes") is not None else None,
        vision=_vision(node.node("vision")) if node.raw("vision") is not None else None,
    )
    if rules.template.count("{expression}") != 1:
        node.refuse("template", "text with {expression} in it once")
    if rules.shared_padding and rules.padding != "zeros":
        node.refuse("shared_padding", "false where 'padding' is not 'zeros'")
    if rules.positions != "none" and rules.vision is None:
        node.refuse("positions", "'none' where there is no 'vision'")
    return rules


def _quotes(node: Node) -> QuoteRules:
    return QuoteRules(
        style=node.choice("style", QUOTE_STYLES), start=node.integer("start", 0, 2**20)
    )


def _vision(node: Node) -> VisionRules:
    rules = VisionRules(
        image_token=node.text("image_token"),
        view_resample=node.choice("view_resample", RESAMPLES),
        align=node.boolean("align", default=False),
        resample=node.choice("resample", RESAMPLES),
        min_pixels=node.integer("min_pixels", 1, MAX_PIXELS),
        max_pixels=node.integer("max_pixels", 1, MAX_PIXELS),
        patch_px=node.integer("patch_px", 1, 256),
        merge=node.integer("merge", 1, 16),
        frames=node.integer("frames", 1, 16),
        mean=_triple(node, "mean", -1000.0),
        std=_triple(node, "std", 1e-6),
        arithmetic=node.choice("arithmetic", ARITHMETICS, default="pillow"),
    )
    if rules.arithmetic == "torchvision" and rules.resample not in ("bilinear", "bicubic"):
        node.refuse("resample", "bilinear or bicubic, where 'arithmetic' is torchvision's")
    if rules.max_pixels < rules.min_pixels:
        node.refuse("max_pixels", f"at least min_pixels ({rules.min_pixels})")
    return rules


def _triple(node: Node, key: str, low: float) -> tuple[float, float, float]:
    values = node.items(key, most=3)
    if len(values) != 3:
        node.refuse(key, "three numbers, for red, green and blue")
    inner = Node(dict(zip("rgb", values, strict=True)), node.full(key))
    red, green, blue = (inner.number(channel, low, 1000.0) for channel in "rgb")
    return red, green, blue
