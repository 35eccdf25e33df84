"""What a dataset format is given, and what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from rism.runtime.names import EPSILON

if TYPE_CHECKING:
    from rism.runtime.result.segmentation import Segmentation

Entry: TypeAlias = Mapping[str, Any]
"""An image and its annotations as JSON."""


@dataclass(frozen=True)
class DatasetOptions:
    """What all images of a dataset share.

    Attributes:
        categories: names of the categories, each once.
        rle: whether masks are written pixel by pixel, not as polygons.
        epsilon: how far a polygon may be from the outline of its mask, pixels.
    """

    categories: tuple[str, ...]
    rle: bool = False
    epsilon: float = EPSILON


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and the masks on it.

    Attributes:
        name: its path below the folder of all images, with slashes.
        reference: where the format's files say that it is; for LabelMe the path from the JSON file.
        size_wh: pixels, upright.
        masks: those that are not empty, each with the index of its category.
        id: the user's number for it, or None; COCO has it.
    """

    name: str
    reference: str
    size_wh: tuple[int, int]
    masks: tuple[tuple[int, Segmentation], ...]
    id: int | None = None


@dataclass(frozen=True)
class DatasetFormat:
    """A format: an entry of `table.FORMATS`.

    A format has a file for each image (`image_file`, `encode`), or one for all images (`whole`,
    `entry`, `assemble`).

    Attributes:
        title: its name in messages.
        options: the flags that it knows, of "rle" and "epsilon".
        fixed: files of the whole dataset that depend on its options only.
        image_file: the path of an image's file in the dataset, for its stem.
        encode: the contents of that file.
        whole: the name of the file for all images.
        entry: the part of one image in it, kept as JSON until all are known.
        assemble: that file, in pieces, from a function that reads all entries from the first on.
        images: the folder that the images themselves are put into, or None.
        beside: whether its files may lie among others, such as the images.
    """

    title: str
    options: tuple[str, ...]
    fixed: Callable[[DatasetOptions], Mapping[str, bytes]] = lambda _: {}
    image_file: Callable[[str], str] | None = None
    encode: Callable[[AnnotatedImage, DatasetOptions], bytes] | None = None
    whole: str = ""
    entry: Callable[[AnnotatedImage, DatasetOptions], Entry] | None = None
    assemble: Callable[[Callable[[], Iterator[Entry]], DatasetOptions], Iterable[bytes]] | None = (
        None
    )
    images: str | None = None
    beside: bool = False
