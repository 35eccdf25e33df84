"""The manifest of a bundle (docs/bundle.md), as frozen dataclasses.

`parse_manifest` makes them from JSON that may come from a stranger: every error names the key,
unknown keys are ignored, and formats newer than this reader are refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rism.runtime.bundle.confidence_rule import ConfidenceRule
from rism.runtime.bundle.engine_spec import EngineVariant, SelfTest, parse_engines, parse_self_test
from rism.runtime.bundle.file_spec import FileInfo, parse_files
from rism.runtime.bundle.graph_spec import (
    SIZELESS,
    GraphSpec,
    PrecisionInfo,
    parse_graphs,
    parse_precision,
    same_shape,
    size_suffix,
)
from rism.runtime.bundle.json_reader import Node, is_integer
from rism.runtime.bundle.prompt_spec import RESAMPLES, PromptRules, parse_prompt
from rism.runtime.bundle.scope import Scope, is_noun
from rism.runtime.errors import BundleError, listed, one_line
from rism.runtime.names import CAPTURES

READS_MAJOR = 1
PROTOTYPES = ("equation", "cosine")
MAX_NOISE_VALUES = 2**26
MAX_SIZES = 64
MAX_SIDE_PX = 8192
MAX_NOUNS = 1000


@dataclass(frozen=True)
class ModelInfo:
    """Where the weights came from.

    `scope` limits what a demonstrator can be asked; None where the bundle states no limit.
    """

    name: str
    family: str
    source: str
    revision: str
    licence: str
    demonstrator: bool
    scope: Scope | None = None


@dataclass(frozen=True)
class Geometry:
    """How an image is brought to the model's size; see docs/bundle.md, step 2.

    `sizes` are the (width, height) in pixels that graphs were exported at; none where graphs
    take any size. `rounding` is "floor" or "ceil"; `resize_in` is the type that the resize
    rounds to, "uint8" or "float32".
    """

    size_level: int
    resize: str
    remainder: str
    multiple_px: int
    token_px: int
    resample: str
    max_aspect: float
    mean: float
    std: float
    sizes: tuple[tuple[int, int], ...] = ()
    rounding: str = "floor"
    resize_in: str = "uint8"

    @property
    def first_size(self) -> tuple[int, int] | None:
        """The first of `sizes`; None where graphs take any size."""
        return self.sizes[0] if self.sizes else None


@dataclass(frozen=True)
class Method:
    """Defaults of the method, and where in the model its features come from.

    `confidence` is None for a model without a fitted rule: then no object is called absent.
    `capture_blocks` are those that attention is read from, and `noisy_grid` says that only every
    such row and column of the image has noisy tokens: the graphs know both.
    """

    tau: float
    timestep: float
    double_blocks: int
    single_blocks: int
    feature_block: int
    feature_site: str
    feature_dim: int
    prototype: str
    confidence: ConfidenceRule | None = None
    capture_blocks: tuple[int, ...] | None = None
    noisy_grid: int = 1


@dataclass(frozen=True)
class NoiseInfo:
    """The fixed noise: raw little-endian float32, row-major, (rows, channels)."""

    file: str
    shape: tuple[int, int]


@dataclass(frozen=True)
class Manifest:
    """Everything that manifest.json says and this reader uses."""

    schema_version: str
    model: ModelInfo
    created_with: Mapping[str, str]
    precision: PrecisionInfo
    geometry: Geometry
    prompt: PromptRules
    method: Method
    noise: NoiseInfo
    default_capture: str
    graphs: Mapping[str, GraphSpec]
    files: Mapping[str, FileInfo]
    engines: tuple[EngineVariant, ...] = ()
    self_test: SelfTest | None = None
    calibration: str | None = None

    @property
    def captures(self) -> tuple[str, ...]:
        """Capture modes that this bundle has a graph for, at every size if sizes are fixed."""
        first = self.geometry.first_size
        return tuple(c for c in CAPTURES if self.at_size(f"transformer.{c}", first) in self.graphs)

    def at_size(self, name: str, size_wh: tuple[int, int] | None) -> str:
        """Name the graph for images of a size: with "@WxH" where sizes are fixed."""
        if not self.geometry.sizes or size_wh is None:
            return name
        return name + size_suffix(size_wh)

    def graphs_of(self, capture: str) -> dict[str, str]:
        """Return the graphs that a capture mode needs, by what their engines are called.

        Those of a transformer are called "transformer", of fixed sizes "transformer@512x512".
        """
        names = {name: name for name in SIZELESS if name in self.graphs}
        for size_wh in self.geometry.sizes or (None,):
            names[self.at_size("vae_encoder", size_wh)] = self.at_size("vae_encoder", size_wh)
            names[self.at_size("transformer", size_wh)] = self.at_size(
                f"transformer.{capture}", size_wh
            )
        return names

    def precision_of(self, graph: str) -> PrecisionInfo:
        """Return what a graph computes in, by its full name."""
        return self.graphs[graph].precision or self.precision

    def graph(self, name: str, size_wh: tuple[int, int] | None = None) -> GraphSpec:
        """Return a graph by its name without a size, for images resized to `size_wh` pixels.

        The size is None for "text_encoder", "vision_encoder" and "modulation".
        """
        return self.graphs[self.at_size(name, size_wh)]


def parse_manifest(data: object) -> Manifest:
    """Check what `json.loads` made of a manifest.json and turn it into a `Manifest`.

    Raises:
        BundleError: not a bundle, a newer format, or a key that is missing, of the wrong type
            or out of range; the message names the key.
    """
    top = Node(data)
    if top.raw("format") != "rism-bundle":
        top.refuse("format", "'rism-bundle'")
    version = top.version(READS_MAJOR)
    geometry = _geometry(top.node("geometry"))
    files = parse_files(top.node("files"))
    prompt = parse_prompt(top.node("prompt"), files)
    graphs = parse_graphs(top.node("graphs"), geometry.sizes, prompt, files)
    manifest = Manifest(
        schema_version=version,
        model=_model(top.node("model")),
        created_with=_created_with(top.node_or_empty("created_with")),
        precision=parse_precision(top.node("precision")),
        geometry=geometry,
        prompt=prompt,
        method=_method(top.node("method")),
        noise=_noise(top.node("noise"), files),
        default_capture=top.choice("default_capture", CAPTURES),
        graphs=graphs,
        files=files,
        engines=parse_engines(top, graphs, files),
        self_test=parse_self_test(top, graphs, files),
        calibration=(
            top.node("calibration").listed_file("file", files) if top.has("calibration") else None
        ),
    )
    if manifest.default_capture not in manifest.captures:
        top.refuse("default_capture", f"a capture mode with a graph ({listed(manifest.captures)})")
    _check_sizes(manifest)
    return manifest


def _model(node: Node) -> ModelInfo:
    demonstrator = node.boolean("demonstrator", default=False)
    if node.has("scope") and not demonstrator:
        node.refuse("scope", "none where 'demonstrator' is not true")
    return ModelInfo(
        name=node.text("name"),
        family=node.text("family"),
        source=node.text("source", default="unknown"),
        revision=node.text("revision", default="unknown"),
        licence=node.text("licence", default="unknown"),
        demonstrator=demonstrator,
        scope=_scope(node.node("scope")) if node.has("scope") else None,
    )


def _scope(node: Node) -> Scope:
    given = node.items("nouns", most=MAX_NOUNS)
    nouns = [each for each in given if isinstance(each, str) and is_noun(each)]
    if not nouns or len(nouns) != len(given):
        node.refuse("nouns", f"1 to {MAX_NOUNS} words in lower case")
    return Scope(tuple(nouns))


def _created_with(node: Node) -> dict[str, str]:
    # Only shown to people, so what is not text is left out rather than refused.
    return {
        one_line(key, limit=60): one_line(node.raw(key), limit=60)
        for key in node.names()[:64]
        if isinstance(node.raw(key), str)
    }


def _geometry(node: Node) -> Geometry:
    geometry = Geometry(
        size_level=node.integer("size_level", 8, 8192),
        resize=node.choice("resize", ("always", "shrink")),
        remainder=node.choice("remainder", ("stretch", "crop")),
        multiple_px=node.integer("multiple_px", 1, 512),
        token_px=node.integer("token_px", 1, 64),
        resample=node.choice("resample", RESAMPLES),
        max_aspect=node.number("max_aspect", 1.0, 1000.0),
        mean=node.number("mean", -1000.0, 1000.0),
        std=node.number("std", 1e-6, 1000.0),
        sizes=_sizes(node, node.integer("multiple_px", 1, 512)),
        rounding=node.choice("rounding", ("floor", "ceil"), default="floor"),
        resize_in=node.choice("resize_in", ("uint8", "float32"), default="uint8"),
    )
    if geometry.multiple_px % geometry.token_px:
        node.refuse("multiple_px", f"a multiple of token_px ({geometry.token_px})")
    if geometry.rounding == "ceil" and geometry.resize != "always":
        node.refuse("rounding", "'floor' where 'resize' is not 'always'")
    return geometry


def _sizes(node: Node, multiple: int) -> tuple[tuple[int, int], ...]:
    if not node.has("sizes"):
        return ()
    entries = node.items("sizes", most=MAX_SIZES)
    sizes = {
        (entry[0], entry[1]): None
        for entry in entries
        if isinstance(entry, list)
        and len(entry) == 2
        and all(is_integer(side, 1, MAX_SIDE_PX) and side % multiple == 0 for side in entry)
    }
    if not sizes or len(sizes) != len(entries):
        node.refuse(
            "sizes",
            f"1 to {MAX_SIZES} different [width, height] in pixels, multiples of multiple_px "
            f"({multiple}) up to {MAX_SIDE_PX}",
        )
    return tuple(sizes)


def _method(node: Node) -> Method:
    method = Method(
        tau=node.number("tau", 0.0, 1.0),
        timestep=node.number("timestep", 0.0, 1.0),
        double_blocks=node.integer("double_blocks", 0, 1024),
        single_blocks=node.integer("single_blocks", 0, 1024),
        feature_block=node.integer("feature_block", 0, 2048),
        feature_site=node.text("feature_site"),
        feature_dim=node.integer("feature_dim", 1, 2**17),
        prototype=node.choice("prototype", PROTOTYPES, default="equation"),
        confidence=None if node.raw("confidence") is None else _confidence(node.node("confidence")),
        capture_blocks=_capture_blocks(node),
        noisy_grid=node.integer("noisy_grid", 1, 64, default=1),
    )
    if method.tau >= 1.0:
        node.refuse("tau", "a number from 0 to below 1")
    return method


def _capture_blocks(node: Node) -> tuple[int, ...] | None:
    if node.raw("capture_blocks") is None:
        return None
    given = node.items("capture_blocks", most=2048)
    blocks = tuple(each for each in given if isinstance(each, int) and is_integer(each, 0, 2048))
    if not blocks or len(blocks) < len(given):
        node.refuse("capture_blocks", "a list of block numbers")
    return blocks


def _confidence(node: Node) -> ConfidenceRule:
    weights = ("separability", "concentration", "agreement", "bias")
    return ConfidenceRule(
        **{key: node.number(key, -1e6, 1e6) for key in weights},
        threshold=node.number("threshold", 0.0, 1.0),
    )


def _noise(node: Node, files: Mapping[str, FileInfo]) -> NoiseInfo:
    node.choice("dtype", ("float32",))
    shape = node.sizes("shape")
    if len(shape) != 2 or shape[0] * shape[1] > MAX_NOISE_VALUES:
        node.refuse("shape", f"[rows, channels] with at most {MAX_NOISE_VALUES} values")
    noise = NoiseInfo(node.listed_file("file", files), (shape[0], shape[1]))
    size = files[noise.file].size
    if size != shape[0] * shape[1] * 4:
        raise BundleError(
            f"manifest.json: '{noise.file}' is {size} bytes, expected {shape[0] * shape[1] * 4} "
            f"for noise.shape {list(shape)}: export the bundle again"
        )
    return noise


def _check_sizes(manifest: Manifest) -> None:
    """Refuse a fixed size with too little noise, or a graph made for another size."""
    for width, height in manifest.geometry.sizes:
        token_px = manifest.geometry.token_px
        tokens = (width // token_px) * (height // token_px)
        if tokens > manifest.noise.shape[0]:
            raise BundleError(
                f"manifest.json: size {width} x {height} makes {tokens} tokens, expected at most "
                f"{manifest.noise.shape[0]} (noise.shape): export the bundle again"
            )
        wanted: dict[tuple[str, str], tuple[int | str, ...]] = {
            ("vae_encoder", "image"): (1, 3, height, width)
        }
        for capture in manifest.captures:
            wanted[f"transformer.{capture}", "clean_latents"] = (
                "batch", tokens, manifest.noise.shape[1],
            )  # fmt: skip
        for (name, logical), shape in wanted.items():
            tensor = manifest.graph(name, (width, height)).inputs.get(logical)
            if tensor is not None and not same_shape(shape, tensor.shape):
                raise BundleError(
                    f"manifest.json: graph '{manifest.at_size(name, (width, height))}' takes "
                    f"'{logical}' of shape {one_line(list(tensor.shape), limit=80)}, expected "
                    f"{list(shape)}: export the bundle again"
                )
