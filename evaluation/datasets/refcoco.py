"""RefCOCO, RefCOCO+ and RefCOCOg in the layout of REFER: refs(*).p, instances.json, images."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rism.evaluation.datasets.listing import ListedDataset, Listing, clean_sentence
from rism.evaluation.datasets.masks import (
    CocoSegmentation,
    check_fit,
    check_segmentation,
    decode_segmentation,
)
from rism.evaluation.datasets.request import DatasetRequest
from rism.evaluation.datasets.safe_pickle import load_plain_pickle
from rism.evaluation.datasets.sample import Image, Mask, Sample
from rism.evaluation.datasets.splits import partition_notes
from rism.evaluation.datasets.stored_images import header_size_hw, read_stored
from rism.runtime.errors import InputError, one_line

# Under the root; the first is REFER's own.
IMAGE_FOLDERS = (
    "images/mscoco/images/train2014",
    "images/mscoco/train2014",
    "images/train2014",
    "mscoco/train2014",
    "coco/train2014",
    "train2014",
)
MAX_JSON_BYTES = 2**30
MAX_NAMED = 8


@dataclass(frozen=True)
class _Object:
    """The object that a sentence refers to."""

    where: str
    size_hw: tuple[int, int]
    segmentation: CocoSegmentation


@dataclass(frozen=True)
class Refer(ListedDataset[_Object]):
    """An opened split of REFER's files.

    Masks and images are in the stored orientation; EXIF turns neither.
    """

    images: Path

    def image(self, sample: Sample) -> Image:
        """Read a sample's image: (H, W, 3) uint8 RGB, as stored."""
        return read_stored(self.images / sample.image)

    def mask(self, sample: Sample) -> Mask:
        """Decode a sample's true mask: (H, W) bool."""
        found = self.entries[sample.key]
        size_hw = header_size_hw(self.images / sample.image, sample.image)
        if size_hw != found.size_hw:
            raise InputError(
                f"{sample.image} is {size_hw[1]} x {size_hw[0]} pixels, and instances.json says "
                f"{found.size_hw[1]} x {found.size_hw[0]}: get the image again"
            )
        return decode_segmentation(found.segmentation, size_hw, merge=self.merge, where=found.where)


def open_refer(request: DatasetRequest, root: Path, *, split_by: str, split: str) -> Refer:
    """Open a split of the request's source, a folder under the root beside the images.

    Raises:
        InputError: something is not where it should be, or damaged as a whole.
    """
    dataset = request.source
    folder = _find_dataset(root, dataset)
    refs_file = _find_refs(folder, split_by)
    refs = list(_refs_of(load_plain_pickle(refs_file), refs_file, split))
    images = find_images(root)
    annotations, sizes = _read_instances(folder / "instances.json", refs)
    listing: Listing[_Object] = Listing()
    for ref in refs:
        where = f"ref {one_line(ref.get('ref_id'), limit=20)}"
        try:
            found, image = _object_of(ref, annotations, sizes, where)
            if not (images / image).is_file():
                raise InputError(f"its image {image} is not in '{one_line(images)}'")
        except InputError as error:
            listing.refuse(where, error, sentences=len(_list_of(ref.get("sentences"))))
            continue
        _add_sentences(listing, ref, image, found, request.wording)
    name = f"{dataset} {split_by} {split}"
    listing.require_samples(name)
    sentences = sum(len(_list_of(ref.get("sentences"))) for ref in refs)
    notes = partition_notes(
        dataset, split, split_by=split_by, objects=len(refs), sentences=sentences
    )
    samples, problems = listing.samples(request.limit), tuple(listing.problems)
    return Refer(name, samples, notes, problems, request.gt_merge, listing.entries, images)


def find_images(root: Path) -> Path:
    """Return the folder of COCO's train2014 images under a root.

    Raises:
        InputError: there is none.
    """
    for name in IMAGE_FOLDERS:
        if (root / name).is_dir():
            return root / name
    raise InputError(
        f"no images of COCO's train2014 under '{one_line(root)}', expected them in one of "
        f"{', '.join(IMAGE_FOLDERS)}; there is {listed(root)}: unpack train2014.zip there"
    )


def listed(folder: Path) -> str:
    """Return the names of the first entries of a folder."""
    try:
        names = sorted(one_line(entry.name, limit=40) for entry in folder.iterdir())
    except OSError:
        return "nothing that can be listed"
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return (", ".join(names[:MAX_NAMED]) or "nothing") + more


def _find_dataset(root: Path, dataset: str) -> Path:
    if not root.is_dir():
        raise InputError(f"--root '{one_line(root)}' is not a folder, expected one with {dataset}/")
    folder = root / dataset
    if folder.is_dir():
        return folder
    hint = f"unpack {dataset}.zip there"
    if any(root.glob("refs(*).p")):
        hint = f"the root is one folder above, '{one_line(root.absolute().parent)}'"
    raise InputError(
        f"'{one_line(root)}' has no folder {dataset}, expected {dataset}/refs(*).p and "
        f"{dataset}/instances.json, or parquet files; there is {listed(root)}: {hint}"
    )


def _find_refs(folder: Path, split_by: str) -> Path:
    file = folder / f"refs({split_by}).p"
    if not file.is_file():
        others = one_line(", ".join(sorted(path.name for path in folder.glob("refs(*).p"))))
        raise InputError(
            f"'{one_line(file)}' is not there; there is {others or listed(folder)}: "
            + ("choose one with --split-by" if others else "unpack the dataset there")
        )
    if not (folder / "instances.json").is_file():
        raise InputError(
            f"'{one_line(folder / 'instances.json')}' is not there; there is {listed(folder)}: "
            "it comes with the same archive as refs(*).p"
        )
    return file


def _refs_of(found: object, file: Path, split: str) -> Iterator[Mapping[object, object]]:
    """Return the entries of one split, in the file's order."""
    name = f"'{one_line(file)}'"
    if not isinstance(found, list) or not all(isinstance(ref, dict) for ref in found):
        raise InputError(f"{name} holds no list of REFER's entries: get it again")
    splits = Counter(_text(ref.get("split")) for ref in found)
    if split not in splits:
        known = ", ".join(f"{one_line(key, limit=20)} ({n:,})" for key, n in splits.most_common(8))
        raise InputError(f"{name} has no split '{one_line(split)}', it has {known or 'nothing'}")
    return (ref for ref in found if _text(ref.get("split")) == split)


def _read_instances(
    file: Path, refs: Sequence[Mapping[object, object]]
) -> tuple[dict[int, object], dict[int, object]]:
    """Return the annotations and images of the entries, by id."""
    name = f"'{one_line(file)}'"
    if file.stat().st_size > MAX_JSON_BYTES:
        raise InputError(f"{name} is larger than {MAX_JSON_BYTES // 2**20} MiB: get it again")
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(
            f"{name} is damaged or not JSON ({one_line(error, limit=80)}): get it again"
        ) from None
    found: list[dict[int, object]] = []
    for key, field in (("annotations", "ann_id"), ("images", "image_id")):
        wanted = {_integer(ref.get(field)) for ref in refs}
        entries = data.get(key) if isinstance(data, dict) else None
        if not isinstance(entries, list):
            raise InputError(f"{name} has no list '{key}', as COCO's files have: get it again")
        by_id = ((_integer(entry.get("id")), entry) for entry in entries if isinstance(entry, dict))
        found.append({n: entry for n, entry in by_id if n is not None and n in wanted})
    return found[0], found[1]


def _object_of(
    ref: Mapping[object, object],
    annotations: Mapping[int, object],
    sizes: Mapping[int, object],
    where: str,
) -> tuple[_Object, str]:
    """Return the object that an entry refers to, and its image's name."""
    annotation_id, image_id = _integer(ref.get("ann_id")), _integer(ref.get("image_id"))
    annotation = None if annotation_id is None else annotations.get(annotation_id)
    image = None if image_id is None else sizes.get(image_id)
    if not isinstance(annotation, dict):
        raise InputError(f"its annotation {annotation_id} is not in instances.json")
    if not isinstance(image, dict):
        raise InputError(f"its image {image_id} is not in instances.json")
    if _integer(annotation.get("image_id")) != image_id:
        raise InputError(f"its annotation {annotation_id} is of another image than {image_id}")
    name = image.get("file_name")
    if not isinstance(name, str) or Path(name).name != name or "\\" in name or "\0" in name:
        raise InputError(f"its image's name {one_line(repr(name), limit=60)} is not a file name")
    height, width = _integer(image.get("height")), _integer(image.get("width"))
    if not height or not width or height < 0 or width < 0:
        raise InputError(f"its image {image_id} has no size in instances.json")
    named = f"annotation {annotation_id} of {where}"
    segmentation = check_segmentation(annotation.get("segmentation"), named)
    check_fit(segmentation, (height, width), named)
    return _Object(named, (height, width), segmentation), name


def _add_sentences(
    listing: Listing[_Object],
    ref: Mapping[object, object],
    image: str,
    found: _Object,
    wording: str,
) -> None:
    """List an entry's sentences, each a sample."""
    ref_id = one_line(ref.get("ref_id"), limit=20)
    sentences = _list_of(ref.get("sentences"))
    if not sentences:
        listing.refuse(f"ref {ref_id}", "it has no sentences")
    for place, sentence in enumerate(sentences):
        entry = sentence if isinstance(sentence, dict) else {}
        key = f"{ref_id}:{one_line(entry.get('sent_id', f'#{place}'), limit=20)}"
        try:
            expression = clean_sentence(entry.get(wording))
        except InputError as error:
            listing.refuse(key, f"{error} under '{wording}'")
            continue
        listing.add(Sample(key, image, expression), found)


def _list_of(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else one_line(repr(value), limit=20)


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
