"""What a Label Studio label config says of images, masks and expressions.

By https://labelstud.io/tags and the parser of label-studio-sdk 2.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from rism.runtime.errors import one_line
from rism.serve.errors import RequestError

_MASKS = {
    "BrushLabels": ("brush", "brushlabels"),
    "Brush": ("brush", None),
    "PolygonLabels": ("polygon", "polygonlabels"),
    "Polygon": ("polygon", None),
}
_HINT = (
    'expected <Image name="image" value="$image"/> and one of '
    f'{", ".join(_MASKS)} with toName="image"'
)
_LONGEST = 2**17


@dataclass(frozen=True)
class MaskControl:
    """A tag that holds masks.

    Attributes:
        name: of the tag.
        form: "brush" or "polygon".
        kind: the key of the labels in a region's value, or None where it has none.
        labels: that it offers.
    """

    name: str
    form: str
    kind: str | None
    labels: tuple[str, ...]

    def labels_of(self, expression: str) -> list[str]:
        """Return the label of that name, or else the first."""
        same = [each for each in self.labels if each.lower() == expression.lower()]
        return [*same, *self.labels][:1]


@dataclass(frozen=True)
class LabelConfig:
    """One image of a label config, with what belongs to it.

    Attributes:
        image: name of the tag.
        column: of a task's data, with the image.
        masks: where they go, at least one.
        texts: by the name of a TextArea, the column of its first text, or None.
        choices: by the name of a Choices, what it offers; or the column that lists it.
    """

    image: str
    column: str
    masks: tuple[MaskControl, ...]
    texts: Mapping[str, str | None]
    choices: Mapping[str, tuple[str, ...] | str]

    def asked(self, data: Mapping[str, Any], context: object) -> tuple[Any, ...]:
        """Return the expressions for a task.

        Those that were typed or chosen (`context`, as Label Studio sends it while somebody labels);
        or else texts and choices that the task or the config has from the start; without a TextArea
        and Choices the labels.
        """
        if isinstance(context, dict) and context.get("result"):
            return tuple(dict.fromkeys(self._typed(context["result"])))
        found: list[Any] = [data.get(column) for column in self.texts.values() if column]
        for offered in self.choices.values():
            found += _listed(data.get(offered)) if isinstance(offered, str) else offered
        if not self.texts and not self.choices:
            found += [label for mask in self.masks for label in mask.labels]
        return tuple(dict.fromkeys(each for each in found if isinstance(each, str) and each))

    def _typed(self, regions: object) -> list[str]:
        found: list[str] = []
        for region in regions if isinstance(regions, list) else []:
            value = region.get("value") if isinstance(region, dict) else None
            name = region.get("from_name") if isinstance(region, dict) else None
            if isinstance(value, dict) and isinstance(name, str):
                if name in self.texts:
                    found += _listed(value.get("text"))
                elif name in self.choices:
                    found += _listed(value.get("choices"))
        return found


def parse_label_config(text: object) -> LabelConfig:
    """Read a label config.

    Raises:
        RequestError: it is no XML, or has no image with a control for masks.
    """
    if not isinstance(text, str) or len(text) > _LONGEST or "<!" in text.replace("<!--", ""):
        raise RequestError(422, "the label config is not XML, or has a DTD", hint=_HINT)
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise RequestError(
            422, f"the label config is not XML: {one_line(error, limit=120)}", hint=_HINT
        ) from None
    controls: dict[str, list[ElementTree.Element]] = {}
    for tag in root.iter():
        for target in tag.get("toName", "").split(","):
            controls.setdefault(target, []).append(tag)
    for image in root.iter("Image"):
        name, column = image.get("name"), _column(image)
        own = controls.get(name, []) if name else []
        masks = tuple(_mask(each) for each in own if each.tag in _MASKS and each.get("name"))
        if name and column and masks:
            texts = {
                each.get("name", ""): _column(each)
                for each in own if each.tag == "TextArea" and each.get("perRegion") != "true"
            }  # fmt: skip
            choices = {
                each.get("name", ""): _column(each) or _names(each)
                for each in own if each.tag == "Choices" and each.get("perRegion") != "true"
            }  # fmt: skip
            return LabelConfig(name, column, masks, texts, choices)
    raise RequestError(422, "the label config has no image with a control for masks", hint=_HINT)


def _mask(tag: ElementTree.Element) -> MaskControl:
    form, kind = _MASKS[tag.tag]
    return MaskControl(tag.get("name", ""), form, kind, _names(tag))


def _column(tag: ElementTree.Element) -> str | None:
    value = tag.get("value", "")
    return value[1:] if value.startswith("$") else None


def _names(tag: ElementTree.Element) -> tuple[str, ...]:
    """Return the names of labels or choices, as regions have them."""
    found = [each.get("alias") or each.get("value") for each in tag.iter() if each is not tag]
    return tuple(each for each in found if each)


def _listed(value: object) -> Sequence[str]:
    """Return texts out of a text, a list of texts, or a list of objects with a `value`."""
    listed = value if isinstance(value, list) else [value]
    found = [each.get("value") if isinstance(each, dict) else each for each in listed]
    return [each for each in found if isinstance(each, str) and each.strip()]


__all__ = ["LabelConfig", "MaskControl", "parse_label_config"]
