"""The makers' names of a FLUX transformer's tensors, brought to those of diffusers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rism.export.checkpoint.safetensors_store import StoredTensor, TensorStore
from rism.export.errors import CheckpointError
from rism.export.family import FILE_PREFIX


@dataclass(frozen=True)
class TransformerNames:
    """How the layers of a family's transformer are called by its makers and by diffusers.

    Attributes:
        title: the family's, for messages.
        whole: layers outside of blocks.
        double, single: layers of a double-stream and of a single-stream block. Where diffusers
            divides a layer, each part has the transformer's width of rows, the last the rest.
        kept: beginnings of names that are the same in both.
    """

    title: str
    whole: Mapping[str, str]
    double: Mapping[str, tuple[str, ...]]
    single: Mapping[str, tuple[str, ...]]
    kept: tuple[str, ...] = ()

    def open(self, file: Path, headers: Mapping[str, StoredTensor]) -> TensorStore:
        """Give a file's tensors their names in diffusers; fused ones become runs of rows.

        Raises:
            CheckpointError: A name that this layout does not have.
        """
        short = {key.removeprefix(FILE_PREFIX): tensor for key, tensor in headers.items()}
        width = short["img_in.weight"].shape[0] if "img_in.weight" in short else 0
        tensors: dict[str, StoredTensor] = {}
        for key, tensor in short.items():
            parts = dict(self._parts(key, tensor, width))
            if not parts:
                raise CheckpointError(
                    f"{file} holds a tensor {key[:100]!r} that {self.title}'s layout does not "
                    f"have: expected an unquantised {self.title} transformer"
                )
            tensors |= parts
        return TensorStore(file.name, tensors)

    def _parts(
        self, key: str, tensor: StoredTensor, width: int
    ) -> Iterator[tuple[str, StoredTensor]]:
        if key.startswith(self.kept or "\0"):
            yield key, tensor
            return
        layer, _, kind = key.rpartition(".")
        kind = "weight" if kind == "scale" else kind
        if layer in self.whole:
            yield f"{self.whole[layer]}.{kind}", tensor
        match = re.fullmatch(r"(double|single)_blocks\.(\d{1,3})\.(.+)", layer, re.ASCII)
        if match is None:
            return
        single = match[1] == "single"
        block = f"{'single_' if single else ''}transformer_blocks.{match[2]}"
        parts = (self.single if single else self.double).get(match[3], ())
        if len(parts) == 1:
            yield f"{block}.{parts[0]}.{kind}", tensor
            return
        rows = tensor.shape[0] if tensor.shape else 0
        ends = [width * place for place in range(len(parts))] + [rows]
        if rows > width * (len(parts) - 1):
            for part, start, stop in zip(parts, ends, ends[1:], strict=False):
                yield f"{block}.{part}.{kind}", tensor.rows(start, stop)

    def makers_names(self, names: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
        """Return, for each of the makers' tensors, the tensors of diffusers it is made of.

        Args:
            names: of a transformer in diffusers' layout.
        """
        found: dict[str, tuple[str, ...]] = {
            name: (name,) for name in names if name.startswith(self.kept or "\0")
        }
        layers: list[tuple[str, tuple[str, ...]]] = [
            (new, (old,)) for new, old in self.whole.items()
        ]
        for group, ours, theirs in (
            ("double_blocks", self.double, "transformer_blocks"),
            ("single_blocks", self.single, "single_transformer_blocks"),
        ):
            numbers = {name.split(".")[1] for name in names if name.startswith(f"{theirs}.")}
            layers += [
                (f"{group}.{number}.{new}", tuple(f"{theirs}.{number}.{old}" for old in parts))
                for number in numbers
                for new, parts in ours.items()
            ]
        for new, parts in layers:
            for kind in ("weight", "bias"):
                if f"{parts[0]}.{kind}" in names:
                    own = "scale" if new.endswith("_norm") else kind
                    found[f"{new}.{own}"] = tuple(f"{part}.{kind}" for part in parts)
        return found
