"""Finding a model's checkpoint and its family: short names, folders, files, the hub."""

from pathlib import Path

from rism.export import families
from rism.export.checkpoint.json_files import list_files, read_json
from rism.export.checkpoint.locate import Checkpoint, fetch_snapshot, refuse_two_meanings
from rism.export.errors import CheckpointError, UnsupportedModelError
from rism.export.family import FamilySpec, PublishedModel
from rism.runtime.errors import one_line

BUILT_IN = {"mini": Path(__file__).parents[1] / "builtin" / "mini"}
# Of the parts' folders only: some repositories hold a second copy as one large file beside them.
_PATTERNS = ["*.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.jinja"]
_LANGUAGE_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja"]


def published_models() -> dict[str, PublishedModel]:
    """Return the models of the hub that have a short name, by it."""
    return {model.name: model for family in families.FAMILIES for model in family.published}


def refining_models() -> dict[str, str]:
    """Return the repositories of the language models that reword instructions, by short name."""
    refining = [family for family in families.FAMILIES if family.refiner is not None]
    return {m.name: m.language_repository for family in refining for m in family.published}


def makers_model(hub_id: str) -> PublishedModel | None:
    """Return the published model of a repository that is in its makers' layout, or None."""
    models = published_models().values()
    return next((m for m in models if m.makers is not None and m.repository == hub_id), None)


def find_checkpoint(
    model: str, *, revision: str | None = None, offline: bool = False, weights: bool = True
) -> Checkpoint:
    """Turn a name, a folder or a hub id into a folder on disk.

    Args:
        model: "mini", a short name of a published model, a folder ("./mini" where it is named
            like one of these), or "owner/name".
        revision: branch, tag or commit on the hub.
        offline: use only what the hub's cache already holds; so does HF_HUB_OFFLINE=1.
        weights: without them only the small files are fetched from the hub.

    Raises:
        CheckpointError: There is no such model, the hub does not give it, or a name is also a
            checkpoint's folder here.
        UnsupportedModelError: The method cannot work with it.
    """
    _refuse_unusable(model.rstrip("/"), model)
    published = published_models()
    refuse_two_meanings(model, (*BUILT_IN, *published))
    folder = BUILT_IN.get(model, Path(model))
    if folder.is_dir() and model not in published:
        source = "built-in" if model in BUILT_IN else "folder"
        return Checkpoint(folder, source, "", _lone_file(folder))
    if folder.suffix == ".safetensors" and folder.is_file():
        return Checkpoint(folder.parent, "file", "", folder)
    if model.lower().endswith(".gguf"):
        raise CheckpointError(
            f"{one_line(Path(model).name, limit=80)} is GGUF, weights in few bits, expected "
            "safetensors in floats: give the BF16 or FP16 release of this model, and --precision "
            "int8 or int4"
        )
    hub_id = published[model].repository if model in published else model
    if hub_id.count("/") != 1 or hub_id.startswith((".", "/")):
        known = ", ".join([*BUILT_IN, *published])
        raise CheckpointError(
            f"no model '{one_line(model)}': expected one of {known}, an existing folder in "
            "diffusers' or its makers' layout, or a hub id like owner/name"
        )
    return _from_hub(hub_id, revision=revision, offline=offline, weights=weights)


def _lone_file(folder: Path) -> Path | None:
    """Return the transformer's file of a folder that is not in diffusers' layout."""
    if (folder / "model_index.json").exists() or (folder / "transformer").exists():
        return None
    words = {word for family in families.FAMILIES for word in family.file_words}
    files = [
        path
        for path in list_files(folder, "*.safetensors")
        if any(word in path.name.lower() for word in words)
    ]
    # A whole download may hold several versions; the one with a short name goes first.
    first = {m.makers.transformer for m in published_models().values() if m.makers is not None}
    files = [path for path in files if path.name in first] or files
    return files[0] if len(files) == 1 else None


def _from_hub(hub_id: str, *, revision: str | None, offline: bool, weights: bool) -> Checkpoint:
    found = makers_model(hub_id)
    makers = None if found is None else found.makers
    patterns = [*_PATTERNS] if makers is None else [makers.transformer, *makers.others, "*.json"]
    folder = fetch_snapshot(hub_id, patterns, revision=revision, offline=offline, weights=weights)
    if makers is None:
        return Checkpoint(folder, f"hub:{hub_id}", folder.name, weights=weights)
    language = fetch_snapshot(
        makers.language, _LANGUAGE_PATTERNS, revision=None, offline=offline, weights=weights
    )
    return Checkpoint(
        folder,
        f"hub:{hub_id}",
        folder.name,
        folder / makers.transformer if weights else None,
        weights=weights,
        language=language,
        pipeline=makers.pipeline,
    )


def family_of(checkpoint: Checkpoint) -> FamilySpec:
    """Tell a checkpoint's family; of weights only the headers of a lone file are read.

    Raises:
        CheckpointError: There is no model_index.json, or the file is damaged.
        UnsupportedModelError: No family has such a model, or the method cannot work with it.
    """
    file = checkpoint.transformer_file
    if file is not None:
        return _family_of_file(file)
    pipeline, shown = checkpoint.pipeline, checkpoint.folder.name
    if not pipeline:
        pipeline = str(read_json(checkpoint.folder / "model_index.json").get("_class_name"))
        _refuse_unusable(pipeline, f"{shown} ({one_line(pipeline, limit=80)})")
    for family in families.FAMILIES:
        if pipeline in family.pipelines:
            return family
    known = ", ".join(name for family in families.FAMILIES for name in family.pipelines)
    raise UnsupportedModelError(
        f"{shown} is a {one_line(pipeline, limit=80)}, expected one of: {known}. "
        "The method needs joint attention over prompt, noisy and clean image tokens"
    )


def _family_of_file(file: Path) -> FamilySpec:
    from rism.export.checkpoint.safetensors_store import read_headers

    _refuse_unusable(file.stem, file.name)
    names = read_headers(file)
    for family in families.FAMILIES:
        if family.owns(file, names):
            _refuse_unusable(file.stem, file.name, family)
            return family
    titles = dict.fromkeys(family.title for family in families.FAMILIES)
    raise UnsupportedModelError(
        f"{file.name} is not a transformer of a known family, expected one of "
        f"{', '.join(titles)} in its makers' layout"
    )


def _refuse_unusable(name: str, shown: str, family: FamilySpec | None = None) -> None:
    """Refuse a name that says that the method cannot use the model.

    Args:
        name: of a model, a file or a pipeline.
        shown: how the message calls it.
        family: whose model it is; None to tell by the words of its files' names.

    Raises:
        UnsupportedModelError: It is such a name.
    """
    name = name.lower()
    for each in families.FAMILIES:
        if each is family or any(word in name for word in each.file_words):
            for ending, reason in each.unusable.items():
                if name.endswith(ending):
                    raise UnsupportedModelError(f"{shown} cannot be used: {reason}")
