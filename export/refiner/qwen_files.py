"""Where the Qwen2.5-VL of a checkpoint is, in whichever layout."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from rism.export import families
from rism.export.checkpoint.json_files import read_json
from rism.export.checkpoint.locate import (
    content_digest,
    fetch_snapshot,
    folder_name,
    refuse_two_meanings,
)
from rism.export.errors import CheckpointError, UnsupportedModelError
from rism.export.families.find import refining_models
from rism.runtime.errors import one_line

# Of a repository the language model's files only; small ones everywhere, to see the layout.
_PATTERNS = ["*.json", "*.txt", "*.jinja", "model*.safetensors", "text_encoder/*.safetensors"]


@dataclass(frozen=True)
class LanguageFiles:
    """A Qwen2.5-VL on disk.

    Attributes:
        weights: the folder of its config.json and weights.
        tokenizer: the folder of its tokenizer, and mostly of its image processor.
        prompt: the file with the refiner's system prompt.
        source: the hub repository, or the folder's name.
        commit: of the repository; empty for a folder.
    """

    weights: Path
    tokenizer: Path
    prompt: Path
    source: str
    commit: str

    def config(self) -> dict[str, Any]:
        """Return config.json."""
        return read_json(self.weights / "config.json")

    def revision(self) -> str:
        """Name the version: the commit, or a digest over the files of a folder.

        Raises:
            CheckpointError: A file cannot be read.
        """
        folders = dict.fromkeys((self.weights, self.tokenizer))
        if self.commit:
            return self.commit
        parts = [content_digest([folder], Event()) for folder in folders]
        if len(parts) == 1:
            return parts[0]
        return f"sha256:{hashlib.sha256(' '.join(parts).encode()).hexdigest()}"

    def default_precision(self) -> str:
        """Return the one that the weights are published in: fp32 or bf16."""
        return "fp32" if stored_type(self.config()) == "float32" else "bf16"

    def weight_files(self) -> list[Path]:
        """List the files of weights.

        Raises:
            CheckpointError: There are none, or one that the index names is missing.
        """
        index = self.weights / "model.safetensors.index.json"
        if not index.is_file():
            files = [self.weights / "model.safetensors"]
        else:
            names = read_json(index).get("weight_map", {})
            found = set(names.values()) if isinstance(names, dict) else set()
            files = [self.weights / str(name) for name in sorted(map(str, found))]
        for file in files:
            if not file.is_file():
                raise CheckpointError(
                    f"{file} is missing, expected the weights of Qwen2.5-VL as safetensors: "
                    "download them again"
                )
        return files


def find_language_model(
    model: str, *, revision: str | None = None, offline: bool = False, weights: bool = True
) -> LanguageFiles:
    """Find the Qwen2.5-VL of a checkpoint.

    Args:
        model: a short name, a folder in diffusers' layout (`text_encoder/` and `processor/` or
            `tokenizer/`), one with `Qwen2.5-VL-7B-Instruct/` in it or beside it or a file there,
            that folder itself, or a hub id of one of these.
        revision: branch, tag or commit on the hub.
        offline: use only what the hub's cache already holds.
        weights: without them only the small files are fetched from the hub.

    Raises:
        CheckpointError: There is no such model, the hub does not give it, or a name is also a
            checkpoint's folder here.
        UnsupportedModelError: Its language model is another.
    """
    refining = [family for family in families.FAMILIES if family.refiner is not None]
    known = refining_models()
    refuse_two_meanings(model, known)
    folder, source, commit = Path(model), "", ""
    if folder.suffix == ".safetensors" and folder.is_file():
        folder = folder.parent
    if model in known or not folder.is_dir():
        source = known.get(model, model)
        if source.count("/") != 1 or source.startswith((".", "/")):
            raise CheckpointError(
                f"no model '{one_line(model)}': expected one of {', '.join(known)}, an existing "
                "folder that holds a Qwen2.5-VL, or a hub id like owner/name"
            )
        folder = fetch_snapshot(
            source, _PATTERNS, revision=revision, offline=offline, weights=weights
        )
        commit = folder.name
    around = (folder, folder.resolve().parent)
    named = [part for place in around for part in sorted(place.glob("Qwen2.5-VL*/"))]
    parts = [folder, folder / "text_encoder", *named]
    found = next((part for part in parts if (part / "config.json").is_file()), None)
    titles = " or ".join(dict.fromkeys(family.title for family in refining))
    if found is None:
        raise CheckpointError(
            f"{folder} holds no language model, expected text_encoder/, Qwen2.5-VL-7B-Instruct/ "
            f"or config.json and weights in it: give the folder or the hub id of a {titles}"
        )
    kind = read_json(found / "config.json").get("model_type")
    prompts = {r.model_type: r.prompt for family in refining if (r := family.refiner)}
    if kind not in prompts:
        raise UnsupportedModelError(
            f"the language model of {one_line(source or folder)} is {one_line(kind, limit=40)}, "
            f"expected {' or '.join(prompts)}, as {titles} has it: other families have no refiner"
        )
    beside = [found.parent / "processor", found.parent / "tokenizer"]
    places = [*beside, found] if found.name == "text_encoder" else [found]
    tokenizer = next((place for place in places if _has_tokenizer(place)), None)
    if tokenizer is None:
        raise CheckpointError(
            f"{found.parent} has no tokenizer, expected processor/ or tokenizer/ beside the "
            "language model, or tokenizer.json in its folder: download it again"
        )
    return LanguageFiles(found, tokenizer, prompts[kind], source or folder_name(folder), commit)


def stored_type(config: dict[str, Any]) -> str:
    """Return what config.json says the weights are: float32, bfloat16, ..."""
    for values in (config, config.get("text_config")):
        if isinstance(values, dict) and (kind := values.get("dtype", values.get("torch_dtype"))):
            return str(kind)
    return "bfloat16"


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
