"""Reworded instructions in a file: written by `rism refine`, looked up by image and instruction.

The format is docs/refine.md. Sizes, types and counts of a file are checked, unknown keys are
ignored, and a newer major version is refused.
"""

from __future__ import annotations

import hashlib
import json
from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

from rism.runtime.arrays import Uint8
from rism.runtime.bundle.json_reader import Node, parse_json, read_own_file
from rism.runtime.errors import InputError, one_line
from rism.runtime.prompt.encoder import clean_expression

FORMAT = "rism-instructions"
SCHEMA_VERSION = "1.0"
READS_MAJOR = 1
MAX_ENTRIES = 100_000
_MAX_BYTES = 64 * 2**20
_COMMAND = "rism refine IMAGE EXPRESSION --model MODEL -o FILE"
_MAKE = "make it again with rism refine"

Fact: TypeAlias = str | int | bool


@dataclass(frozen=True)
class Origin:
    """The model that reworded the instructions of a file.

    Attributes:
        model: its hub repository or folder.
        revision: the commit, or a digest over the files of a folder.
        refiner: everything else that its output depends on: prompt, decoding, image sizes.
    """

    model: str = ""
    revision: str = ""
    refiner: Mapping[str, Fact] = field(default_factory=dict)


@dataclass(frozen=True)
class RefinedInstruction:
    """A reworded instruction for one image, of an `image_digest`; its name is for people.

    `refined` is used instead of `instruction`, the template with the user's expression in it.
    """

    digest: str
    image: str
    expression: str
    instruction: str
    refined: str


def image_digest(image_hwc: Uint8) -> str:
    """Return the SHA-256 of "WIDTHxHEIGHT", a newline and the RGB rows of an image, hexadecimal.

    The image is (H, W, 3) uint8, upright, as `load_image` returns it.
    """
    height, width = image_hwc.shape[:2]
    digest = hashlib.sha256(f"{width}x{height}\n".encode(), usedforsecurity=False)
    digest.update(np.ascontiguousarray(image_hwc).data)
    return digest.hexdigest()


class InstructionFile:
    """Looks up a segmenter's instructions in a file: a `Refiner`.

    >>> refiner = InstructionFile.open("instructions.json")
    >>> segmenter = Segmenter.from_bundle("step1x/", refiner=refiner)

    An instruction that is not in the file is an error.
    """

    def __init__(
        self, name: str, origin: Origin, entries: Iterable[RefinedInstruction] = ()
    ) -> None:
        """Take a file's name, the model that reworded, and checked entries; see `open`."""
        self.name = name
        self.origin = origin
        self._entries: dict[tuple[str, str], RefinedInstruction] = {}
        for entry in entries:
            self.add(entry)

    @classmethod
    def open(cls, path: str | Path) -> InstructionFile:
        """Read a file that `rism refine` wrote.

        Raises:
            InputError: it is missing, not such a file, damaged, or newer than this reader.
        """
        name = one_line(Path(path).name, limit=60)
        top = _parse(read_own_file(Path(path), _COMMAND, most=_MAX_BYTES), name)
        refiner = top.node_or_empty("refiner")
        facts = {key: refiner.raw(key) for key in refiner.names()}
        origin = Origin(
            top.text("model", default=""),
            top.text("revision", default=""),
            {one_line(k): fact for k, fact in facts.items() if isinstance(fact, (int, str))},
        )
        found = cls(name, origin)
        for number, value in enumerate(top.items("instructions", most=MAX_ENTRIES)):
            added = _entry(value, name, f"instructions[{number}]")
            known = found.get(added.digest, added.instruction)
            if known is not None and known.refined != added.refined:
                raise InputError(
                    f"{name} has two texts for '{one_line(added.instruction, limit=80)}' and the "
                    f"image {one_line(added.image, limit=60)}, expected one: remove the other"
                )
            found.add(added)
        return found

    def __len__(self) -> int:
        return len(self._entries)

    def __call__(self, instruction: str, image_hwc: Uint8, /) -> str:
        """Look up the reworded instruction for an image, (H, W, 3) uint8; see `Refiner`.

        Raises:
            InputError: it is not in the file for this image; says how to add it.
        """
        digest = image_digest(image_hwc)
        entry = self.get(digest, instruction)
        if entry is not None:
            return entry.refined
        height, width = image_hwc.shape[:2]
        known = {entry.image for entry in self._entries.values() if entry.digest == digest}
        image = one_line(min(known), limit=24) if known else f"{digest[:12]}, {width} x {height}"
        name = one_line(self.name, limit=24)
        # The segmenter quotes at most 200 characters of a refiner's error.
        raise InputError(
            f"{name} lacks '{one_line(instruction, limit=40)}' for the image ({image}), "
            f"add it: rism refine IMAGE EXPRESSION --model MODEL -o {name}"
        )

    def get(self, digest: str, instruction: str) -> RefinedInstruction | None:
        """Return the entry of an image's digest and an instruction, or None."""
        return self._entries.get((digest, " ".join(instruction.split())))

    @property
    def instructions(self) -> frozenset[str]:
        """Instructions of all entries, white space collapsed."""
        return frozenset(instruction for _, instruction in self._entries)

    def add(self, entry: RefinedInstruction) -> None:
        """Add an entry, or replace the one for the same image and instruction."""
        self._entries[entry.digest, " ".join(entry.instruction.split())] = entry

    def to_json(self) -> str:
        """Return the file's JSON, with a final newline."""
        data = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "model": self.origin.model,
            "revision": self.origin.revision,
            "refiner": dict(self.origin.refiner),
            "instructions": [
                {
                    "picture": entry.digest,
                    "image": entry.image,
                    "expression": entry.expression,
                    "instruction": entry.instruction,
                    "refined": entry.refined,
                }
                for entry in self._entries.values()
            ],
        }
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _node(value: object, name: str, path: str = "") -> Node:
    return Node(value, path, document=name, mend=_MAKE, error=InputError)


def _parse(raw: bytes, name: str) -> Node:
    data = parse_json(raw.removeprefix(BOM_UTF8), name, mend=_MAKE, error=InputError)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(
            f"{name} is not a file of instructions, expected key 'format' to be '{FORMAT}': {_MAKE}"
        )
    top = _node(data, name)
    top.version(READS_MAJOR)
    return top


def _entry(value: object, name: str, path: str) -> RefinedInstruction:
    node = _node(value, name, path)
    words = {}
    for key in ("expression", "instruction", "refined"):
        try:
            words[key] = clean_expression(node.raw(key), what=f"key '{node.full(key)}'")
        except InputError as error:
            raise InputError(f"{name}: {error}, or {_MAKE}") from None
    return RefinedInstruction(node.digest("picture"), node.text("image", default=""), **words)
