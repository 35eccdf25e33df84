"""What a bundle's graphs are to a Triton server: models, and an ensemble that chains them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rism.runtime.bundle.engine_spec import EngineVariant, ShapeRange
from rism.runtime.bundle.graph_spec import GraphSpec, TensorSpec
from rism.runtime.bundle.manifest import Manifest
from rism.runtime.errors import BundleError, InputError, one_line

FREE = -1
# What of the text encoder's and the transformer's inputs a client gives for every expression.
_BY_EXPRESSION = ("input_ids", "attention_mask", "quoted_mask", "prompt_weights", "prompt_mask")
# What of a plan's inputs tells how many rows it takes.
_FIRST = ("input_ids", "clean_latents")
# Of the transformer's inputs, those that the joint may make.
_MADE = ("clean_latents", "noise", "prompt_embeds", "positions", "tau")


@dataclass(frozen=True)
class Tensor:
    """An input or output of a model.

    Attributes:
        name: in the model's file.
        dtype: NumPy's name.
        shape: whole, with the batch where there is one; `FREE` for what may be any size.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """One model of the repository.

    Attributes:
        name: its folder.
        graph: name of the manifest's graph; of the joint, that of the transformer it serves.
        file: the bundle's plan or ONNX file; None for the joint, which is made.
        platform: Triton's name of what runs it.
        inputs, outputs: by logical name.
        max_batch: rows that the server may join from several requests; 0: none, each request
            is a run of its own.
        rows: that a run can have, by its plan; None for any number.
        on_cpu: it belongs there wherever the others run: it works on shapes.
    """

    name: str
    graph: str
    file: str | None
    platform: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    max_batch: int = 0
    rows: int | None = None
    on_cpu: bool = False


@dataclass(frozen=True)
class Step:
    """A model of a chain: names of its tensors to names of the chain's."""

    model: Model
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class Chain:
    """An ensemble: from an image's pixels and prompts' tokens to what a transformer gives.

    Attributes:
        name: its folder.
        size_wh: pixels, where the graphs are of one size.
        steps: in an order in which they can run.
        inputs, outputs: by logical name.
    """

    name: str
    size_wh: tuple[int, int] | None
    steps: tuple[Step, ...]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    @property
    def transformer(self) -> Model:
        """The model at the end."""
        return self.steps[-1].model

    @property
    def joint(self) -> Model:
        """The model that the exporter makes."""
        return next(step.model for step in self.steps if step.model.file is None)


def joined(name: str) -> str:
    """Name what the joint makes, where the chain has another tensor of the logical name."""
    return f"{name}_for_transformer"


def chains(
    manifest: Manifest,
    capture: str,
    *,
    max_batch: int,
    engine: EngineVariant | None = None,
    prefix: str = "",
) -> list[Chain]:
    """Describe a bundle's models, a chain for each fixed size or one for any size.

    Args:
        manifest: the bundle's.
        capture: the transformer's capture mode.
        max_batch: rows that may be joined.
        engine: plans to serve in the place of graphs that it has.
        prefix: of every model's name.

    Raises:
        BundleError: a graph's tensors are not those of docs/bundle.md.
        InputError: text encoder and transformer take different numbers of expressions.
    """
    return [
        _Chaining(manifest, capture, max_batch, engine, prefix, size_wh).chain()
        for size_wh in (manifest.geometry.sizes or (None,))
    ]


@dataclass(frozen=True)
class _Chaining:
    manifest: Manifest
    capture: str
    max_batch: int
    engine: EngineVariant | None
    prefix: str
    size_wh: tuple[int, int] | None

    def chain(self) -> Chain:
        """Put the chain for one size together."""
        text, vae = self._model("text_encoder", None), self._model("vae_encoder", self.size_wh)
        transformer = self._transformer()
        _expect_ranks(text, {"input_ids": 2}, {"prompt_embeds": 3})
        _expect_ranks(vae, {"image": 4}, {"clean_latents": 3})
        joint = self._joint(text, vae, transformer)
        models = [text, vae, joint]
        if "modulation" in self.manifest.graphs:
            models.append(self._model("modulation", None))
            _expect_ranks(models[-1], {"prompt_embeds": 3, "prompt_mask": 2}, {"modulation": 2})
            _expect_same(models[-1].outputs["modulation"], transformer.inputs["modulation"])
        models.append(transformer)
        if self.manifest.prompt.vision is not None:
            eye = self._model("vision_encoder", None)
            _expect_ranks(text, {"position_ids": 3, "image_embeds": 2}, {})
            _expect_same(eye.outputs["image_embeds"], text.inputs["image_embeds"])
            models.insert(0, eye)
        asked = self._asked_for(models, _fixed_rows(transformer, text))
        steps = []
        for at, model in enumerate(models):
            after = joint.outputs if at > models.index(joint) else {}
            steps.append(
                Step(
                    model,
                    {t.name: joined(n) if n in after else n for n, t in model.inputs.items()},
                    {t.name: joined(n) if model is joint else n for n, t in model.outputs.items()},
                )
            )
        return Chain(
            f"{self.prefix}rism_{self.capture}{self._suffix}",
            self.size_wh,
            tuple(steps),
            asked,
            {name: replace(t, name=name) for name, t in transformer.outputs.items()},
        )

    @property
    def _suffix(self) -> str:
        return "" if self.size_wh is None else f"_{self.size_wh[0]}x{self.size_wh[1]}"

    def _asked_for(self, models: list[Model], rows: int) -> dict[str, Tensor]:
        """Return what no model makes: the client gives it, for so many expressions."""
        made = {name for model in models for name in model.outputs}
        asked: dict[str, Tensor] = {}
        for model in models:
            for name, tensor in model.inputs.items():
                if name not in made:
                    axis = 0 if name in _BY_EXPRESSION else 1 if name == "position_ids" else None
                    shape = tuple(rows if i == axis else n for i, n in enumerate(tensor.shape))
                    asked.setdefault(name, replace(tensor, name=name, shape=shape))
        return asked

    def _spec(self, name: str, size_wh: tuple[int, int] | None) -> tuple[str, GraphSpec]:
        whole = self.manifest.at_size(name, size_wh)
        return whole, self.manifest.graphs[whole]

    def _model(self, name: str, size_wh: tuple[int, int] | None) -> Model:
        """Describe a graph as it is, or its plan."""
        whole, spec = self._spec(name, size_wh)
        plan = None if self.engine is None else self.engine.graphs.get(whole)
        profile = {} if plan is None else plan.shapes
        fixed = _fixed_dimensions(spec, profile)
        model = Model(
            self.prefix + name.replace(".", "_") + (self._suffix if size_wh else ""),
            whole,
            spec.file if plan is None else plan.file,
            "onnxruntime_onnx" if plan is None else "tensorrt_plan",
            _tensors(spec.inputs, fixed, profile),
            _tensors(spec.outputs, fixed, {}),
            rows=next((profile[n].max[0] for n in _FIRST if n in profile), None),
        )
        if name != "text_encoder" or self.manifest.prompt.vision is not None:
            return model  # the batch is no batch, or rows share an image
        most = [self.max_batch]
        if plan is not None:
            ranges = [profile.get(name) for name in spec.inputs]
            most += [r.max[0] if r is not None and r.min[0] == 1 else 0 for r in ranges]
        return replace(model, max_batch=min(most)) if _by_rows(spec) else model

    def _transformer(self) -> Model:
        """Describe the transformer: joined over requests where its shapes say all, else as it is.

        Rows of a batch share noise and positions. The server joins requests of equal shapes, so
        the image's grid must be in a shape: the model takes latents by row and column, and
        makes noise and positions of them.
        """
        name = f"transformer.{self.capture}"
        model = self._model(name, self.size_wh)
        ranks = {"clean_latents": 3, "noise": 3, "prompt_embeds": 3, "prompt_weights": 2}
        _expect_ranks(model, ranks | {"positions": 2}, {})
        spec = self._spec(name, self.size_wh)[1]
        by_rows = {n: t for n, t in spec.inputs.items() if n not in ("noise", "positions", "tau")}
        free = _by_rows(GraphSpec(spec.file, by_rows, spec.outputs))
        if model.platform != "onnxruntime_onnx" or not free or "prompt_positions" in spec.inputs:
            return model
        inputs = {n: t for n, t in model.inputs.items() if n in by_rows}
        latents = inputs["clean_latents"]
        shape = (FREE, *self._grid, latents.shape[2])
        inputs["clean_latents"] = replace(latents, shape=shape)
        return replace(model, inputs=inputs, max_batch=self.max_batch)

    @property
    def _grid(self) -> tuple[int, int]:
        if self.size_wh is None:
            return FREE, FREE
        width, height = (side // self.manifest.geometry.token_px for side in self.size_wh)
        return height, width

    def _joint(self, text: Model, vae: Model, transformer: Model) -> Model:
        """Describe what brings one image and several prompts to the transformer's inputs."""
        inputs = {"image": vae.inputs["image"], "clean_latents": vae.outputs["clean_latents"]}
        outputs = {name: transformer.inputs[name] for name in _MADE if name in transformer.inputs}
        embeds, filled = text.outputs["prompt_embeds"], self.manifest.prompt.padding == "zeros"
        if filled:
            inputs["prompt_mask"] = transformer.inputs.get(
                "prompt_mask", Tensor("prompt_mask", "float32", (FREE, FREE))
            )
        if filled or embeds.dtype != transformer.inputs["prompt_embeds"].dtype:
            inputs["prompt_embeds"] = embeds
        else:
            # Only their number is wanted, which the smallest tensor tells.
            del outputs["prompt_embeds"]
            inputs["prompt_weights"] = transformer.inputs["prompt_weights"]
        return Model(
            f"{self.prefix}transformer_inputs{self._suffix}",
            transformer.graph,
            None,
            "onnxruntime_onnx",
            {name: replace(tensor, name=name) for name, tensor in inputs.items()},
            {name: replace(tensor, name=joined(name)) for name, tensor in outputs.items()},
            on_cpu="prompt_embeds" not in outputs,
        )


def _tensors(
    specs: Mapping[str, TensorSpec], fixed: Mapping[str, int], profile: Mapping[str, ShapeRange]
) -> dict[str, Tensor]:
    tensors = {}
    for logical, spec in specs.items():
        shape = [fixed.get(n, FREE) if isinstance(n, str) else n for n in spec.shape]
        if logical in profile:
            ends = zip(shape, profile[logical].min, profile[logical].max, strict=True)
            shape = [low if low == high else n for n, low, high in ends]
        tensors[logical] = Tensor(spec.name, spec.dtype, tuple(shape))
    return tensors


def _fixed_dimensions(spec: GraphSpec, profile: Mapping[str, ShapeRange]) -> dict[str, int]:
    """Return dimensions of a graph that have one size in its plan, by name."""
    return {
        n: low
        for logical, ends in profile.items()
        for n, low, high in zip(spec.inputs[logical].shape, ends.min, ends.max, strict=True)
        if isinstance(n, str) and low == high
    }


def _by_rows(spec: GraphSpec) -> bool:
    """Tell whether every tensor of a graph begins with a batch of any size."""
    tensors = (*spec.inputs.values(), *spec.outputs.values())
    return all(t.shape and isinstance(t.shape[0], str) for t in tensors)


def _fixed_rows(transformer: Model, text: Model) -> int:
    """Return how many expressions there must be, or `FREE`."""
    found = (transformer.inputs["clean_latents"].shape[0], text.inputs["input_ids"].shape[0])
    fixed = {rows for rows in found if rows != FREE}
    if len(fixed) > 1:
        raise InputError(
            f"the transformer takes {found[0]} expressions at a time and the text encoder "
            f"{found[1]}, expected one number: export the bundle, or build the engine, with one "
            "batch for both"
        )
    return fixed.pop() if fixed else FREE


def _expect_ranks(model: Model, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> None:
    wanted = [(n, rank, model.inputs.get(n)) for n, rank in inputs.items()]
    wanted += [(n, rank, model.outputs.get(n)) for n, rank in outputs.items()]
    for name, rank, tensor in wanted:
        if tensor is None or len(tensor.shape) != rank:
            raise BundleError(
                f"graph '{one_line(model.graph)}' has no tensor '{name}' of {rank} dimensions, "
                "which it needs to be chained: export the bundle again"
            )


def _expect_same(made: Tensor, taken: Tensor) -> None:
    if made.dtype != taken.dtype:
        raise BundleError(
            f"'{one_line(made.name, limit=60)}' is made as {made.dtype} and taken as "
            f"{taken.dtype}, expected one type: export the bundle again"
        )


def models_of(found: Sequence[Chain]) -> Iterator[Model]:
    """Return every model once: chains of several sizes share the encoders of text."""
    seen: set[str] = set()
    for chain in found:
        for step in chain.steps:
            if step.model.name not in seen:
                seen.add(step.model.name)
                yield step.model
