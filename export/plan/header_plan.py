"""What an export will read and write at most, from file sizes and headers alone: without PyTorch.

`plan.make_plan` knows more: it builds the modules and so sees which weights fold away or never run.
"""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rism.export.checkpoint.json_files import list_files, read_json
from rism.export.checkpoint.locate import Checkpoint, hub_failure
from rism.export.errors import CheckpointError
from rism.export.families.find import find_checkpoint, makers_model
from rism.export.plan.text import count, existing, size
from rism.runtime.bundle.hub import import_hub
from rism.runtime.errors import BundleError, OutputError, one_line

# The format's own limit (safetensors' documentation).
_MAX_HEADER_BYTES = 100_000_000
_HUB_TIMEOUT_S = 20
# Which layers int8 and int4 leave in 16 bits is known only of the module.
_WIDTHS = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 2, "int4": 2}
_PARTS = ("transformer", "text_encoder", "vae")


@dataclass(frozen=True)
class WeightFiles:
    """Weights of one part of a checkpoint.

    Attributes:
        name: "transformer", "text_encoder" or "vae".
        nbytes: of its files.
        parameters: numbers in them; None where only their sizes are known.
    """

    name: str
    nbytes: int
    parameters: int | None

    def written(self, precision: str | None) -> int:
        """Bytes in a bundle at most."""
        if precision is None or self.parameters is None:
            return self.nbytes
        return self.parameters * _WIDTHS[precision]


@dataclass(frozen=True)
class HeaderPlan:
    """What can be known without building the model.

    Attributes:
        model: as it was asked for.
        source: where it is from.
        blocks: of the transformer as its config.json has them; empty where it has none.
        parts: its weights.
        precision: asked for; None for the checkpoint's own.
        disk_free: at the output, bytes.
        text_precision: asked for, of the text encoder; None for that of the transformer.
    """

    model: str
    source: str
    blocks: str
    parts: tuple[WeightFiles, ...]
    precision: str | None
    disk_free: int
    text_precision: str | None = None

    def written(self, part: WeightFiles) -> int:
        """Bytes of a part in the bundle, at most."""
        text = part.name == "text_encoder" and self.text_precision is not None
        return part.written(self.text_precision if text else self.precision)

    @property
    def disk_bytes(self) -> int:
        """Needed at the output, at most."""
        return sum(self.written(part) for part in self.parts)

    def table(self) -> str:
        """The plan, for people."""
        rows = [
            f"model        {self.model} from {self.source}",
            *([f"transformer  {self.blocks}"] if self.blocks else []),
            f"precision    {self.precision or 'as the checkpoint has it'}",
            "",
            f"{'weights':<14}{'parameters':>12}{'read':>12}{'write':>12}",
        ]
        rows += [
            f"{part.name:<14}{'' if part.parameters is None else count(part.parameters):>12}"
            f"{size(part.nbytes):>12}{size(self.written(part)):>12}"
            for part in self.parts
        ]
        rows += [
            "",
            f"disk         at most {size(self.disk_bytes)} needed, {size(self.disk_free)} free",
            "memory       not known",
            "PyTorch is not installed, so this is of files and their headers: weights that fold",
            "away or are never run are counted, and nothing says whether an export would succeed.",
        ]
        return "\n".join(rows)

    def check(self, output: Path) -> None:
        """Refuse what the disk cannot hold.

        Raises:
            OutputError: likewise.
        """
        if self.disk_bytes > self.disk_free:
            raise OutputError(
                f"{output} needs at most {size(self.disk_bytes)}, its disk has "
                f"{size(self.disk_free)} free: choose a place on another disk with -o"
            )


def plan_from_headers(
    model: str,
    output: Path,
    *,
    precision: str | None = None,
    text_precision: str | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> HeaderPlan:
    """Read the headers of a checkpoint's weights, or the hub's list of its files.

    Args:
        model: see `checkpoint.find_checkpoint`.
        output: the bundle's place.
        precision: "fp32", "fp16", "bf16", "int8" or "int4"; None for the checkpoint's own.
        text_precision: likewise of the text encoder; None for that of the transformer.
        revision: branch, tag or commit on the hub.
        offline: read what the hub's cache holds.

    Raises:
        CheckpointError: there is no such model, or it cannot be read.
        UnsupportedModelError: the method cannot work with it.
    """
    try:
        found = find_checkpoint(model, revision=revision, offline=offline, weights=offline)
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise
        raise _no_hub(model) from None
    config: Mapping[str, object] = {}
    place = found.folder / "transformer" / "config.json"
    if place.is_file():
        config = read_json(place)
    depths = [config.get(key) for key in ("num_layers", "num_single_layers")]
    if found.source.startswith("hub:") and not offline:
        parts = tuple(_on_hub(found.source.removeprefix("hub:"), revision))
    else:
        parts = tuple(_here(found))
    if not parts:
        raise CheckpointError(
            f"{found.name} has no safetensors of a transformer, expected a folder in diffusers' or "
            "its makers' layout"
        )
    usage = shutil.disk_usage(existing(output))
    return HeaderPlan(
        model=found.name,
        source=found.source,
        blocks=f"{depths[0]} + {depths[1]} blocks" if None not in depths else "",
        parts=parts,
        precision=precision,
        disk_free=usage.free,
        text_precision=text_precision,
    )


def _no_hub(model: str) -> CheckpointError:
    try:
        import_hub(f"planning with '{one_line(model, limit=60)}'")
    except BundleError as error:
        return CheckpointError(str(error))
    return CheckpointError("huggingface-hub was installed meanwhile: ask again")


def _here(found: Checkpoint) -> Iterator[WeightFiles]:
    """Read headers, part by part."""
    for name in _PARTS:
        folder = found.folder / name
        files = list_files(folder, "*.safetensors") if folder.is_dir() else []
        if name == "transformer" and found.transformer_file is not None:
            files = [found.transformer_file]
        if name == "text_encoder" and found.language is not None:
            files = list_files(found.language, "*.safetensors")
        if name == "vae" and not files:
            files = [file for file in [found.folder / "vae.safetensors"] if file.is_file()]
        if files:
            yield WeightFiles(
                name, sum(file.stat().st_size for file in files), sum(map(_parameters, files))
            )


def _parameters(file: Path) -> int:
    """Count the numbers of a safetensors file by its header.

    Raises:
        CheckpointError: it has none that is sound.
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER_BYTES, file.stat().st_size - 8):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(stream.read(length))
        shapes = [each["shape"] for name, each in header.items() if name != "__metadata__"]
        if any(not isinstance(n, int) or n < 0 for shape in shapes for n in shape):
            raise ValueError("a shape that is none")
        return sum(math.prod(shape) for shape in shapes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{file} is no safetensors file ({one_line(error, limit=120)}): download it again"
        ) from None


def _on_hub(hub_id: str, revision: str | None) -> Iterator[WeightFiles]:
    """Ask the hub for the sizes of a repository's weights; nothing of them is downloaded."""
    published = makers_model(hub_id)
    makers = None if published is None else published.makers
    sizes = _file_sizes(hub_id, revision)
    for name in _PARTS:
        mine = sum(each for file, each in sizes.items() if file.startswith(f"{name}/"))
        if makers is not None:
            files = {"transformer": (makers.transformer,), "vae": makers.others}.get(name)
            others = _file_sizes(makers.language, None) if files is None else sizes
            mine = sum(others.get(file, 0) for file in files or others)
        if mine:
            yield WeightFiles(name, mine, None)


def _file_sizes(hub_id: str, revision: str | None) -> dict[str, int]:
    hub = import_hub("planning with a model of the hub")
    try:
        info = hub.HfApi().model_info(
            hub_id, revision=revision, files_metadata=True, timeout=_HUB_TIMEOUT_S
        )
    except Exception as error:  # the hub raises a dozen kinds, from three libraries
        raise hub_failure(hub_id, error) from None
    return {
        each.rfilename: each.size or 0
        for each in info.siblings
        if each.rfilename.endswith(".safetensors")
    }
