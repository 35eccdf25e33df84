"""`rism push`: a bundle, uploaded to the model hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rism.cli.console import Console
from rism.cli.flags import QuietFlags, argument, option
from rism.runtime.errors import RismError, one_line

if TYPE_CHECKING:
    from rism.runtime.bundle.reader import Bundle

# Licences, as model cards and manifests name them, that let anybody pass copies on.
_FREE = re.compile(r"apache|mit\b|bsd|cc0|cc-by(?!-n)|public domain", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class PushFlags(QuietFlags):
    """The flags of `rism push`."""

    bundle: str = argument(..., metavar="BUNDLE", help="A folder that rism export wrote.")
    repository: str = argument(
        ..., metavar="OWNER/NAME", help="A repository of the model hub; created if necessary."
    )
    private: bool = option(False, help="Create a repository that only you can read.")
    licence_allows: bool = option(
        False, help="Confirm that the licence lets you pass the weights on."
    )


def push(flags: PushFlags, console: Console) -> None:
    """Check the files of a bundle and upload it to the model hub."""
    from rism.cli.kept_bundles import folder_size
    from rism.runtime.bundle.hub import import_hub
    from rism.runtime.bundle.reader import Bundle, resolve_bundle

    hub, repository = import_hub("rism push"), flags.repository
    bundle = Bundle.open(resolve_bundle(flags.bundle), verify=True)
    licence = bundle.manifest.model.licence
    if not _FREE.search(licence) and not (flags.private or flags.licence_allows):
        raise RismError(
            f"the bundle's weights are under '{one_line(licence, limit=80)}', which may forbid "
            "passing them on: read it, then add --licence-allows, or --private for yourself"
        )
    console.note(f"uploading {folder_size(bundle.path) / 1e9:.2f} GB to {repository}")
    try:
        api = hub.HfApi()
        api.create_repo(repository, private=flags.private, exist_ok=True)
        if flags.private and not api.repo_info(repository).private:  # it existed before
            raise RismError(f"{repository} exists and is public: choose another name")
        api.upload_file(
            path_or_fileobj="".join(_card(bundle, repository)).encode(),
            path_in_repo="README.md",
            repo_id=repository,
        )
        found = api.upload_folder(
            repo_id=repository,
            folder_path=bundle.path,
            allow_patterns=["manifest.json", *bundle.manifest.files],
            commit_message=f"Upload the bundle {bundle.digest[:12]}",
        )
    except RismError:
        raise
    except Exception as error:  # the hub raises a dozen kinds, from three libraries
        raise RismError(
            f"{repository} cannot be written on the model hub ({type(error).__name__}: "
            f"{one_line(error, limit=160)}): log in with hf auth login, check the name"
        ) from None
    commit = getattr(found, "oid", "") or "main"
    console.note(f"uploaded; use it with --bundle {repository}@{commit}")


def _card(bundle: Bundle, repository: str) -> Iterator[str]:
    """Yield a model card that says what the bundle is, and where its weights come from."""
    from rism.runtime.bundle.manifest_file import read_manifest_json

    model = bundle.manifest.model
    source = read_manifest_json(bundle.path).get("model", {})
    yield "---\nlibrary_name: rism\npipeline_tag: image-segmentation\n---\n"
    yield f"# {one_line(model.name)}, a bundle for rism\n\n"
    yield f"    rism run IMAGE EXPRESSION --bundle {repository}\n\n"
    yield f"- licence of the weights: {one_line(model.licence)}\n"
    for key in ("source", "revision", "family"):
        if isinstance(source, dict) and source.get(key):
            yield f"- {key}: {one_line(source[key])}\n"
    yield f"- computes in {bundle.manifest.precision.compute}\n"
    yield f"- SHA-256 of manifest.json, which lists those of all files: {bundle.digest}\n"
