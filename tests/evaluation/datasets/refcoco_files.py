"""A small dataset in REFER's layout, made of drawn scenes."""

import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from rism.evaluation.scenes.expressions import make_expressions
from rism.evaluation.scenes.scene import Scene, make_scene

SCENES = 5
SIZES_WH = ((128, 96), (96, 128), (112, 112), (130, 90), (101, 99))
IMAGES = "images/mscoco/images/train2014"


def outline(mask_hw: np.ndarray, first: int, last: int) -> list[float]:
    """A polygon around the rows first to last - 1 of a mask: down its left, up its right."""
    rows = [y for y in range(first, last) if mask_hw[y].any()]
    ends = [(int(np.flatnonzero(mask_hw[y])[0]), int(np.flatnonzero(mask_hw[y])[-1])) for y in rows]
    left = [(x + 0.25, y) for y, (x, _) in zip(rows, ends, strict=True)]
    right = [(x + 1, y + 0.5) for y, (_, x) in zip(rows, ends, strict=True)]
    return [number for point in (*left, *right[::-1]) for number in point]


def runs(mask_hw: np.ndarray) -> dict[str, Any]:
    """A mask as uncompressed RLE, the way COCO writes crowds."""
    flat = mask_hw.ravel(order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask_hw.shape), "counts": counts}


def segmentation(mask_hw: np.ndarray, form: str) -> Any:
    """A mask as one of the forms of COCO's files."""
    rows = np.flatnonzero(mask_hw.any(axis=1))
    first, last = int(rows[0]), int(rows[-1]) + 1
    middle = (first + last) // 2
    if form == "polygon":
        return [outline(mask_hw, first, last)]
    if form == "apart":
        return [outline(mask_hw, first, middle - 2), outline(mask_hw, middle + 2, last)]
    if form == "overlapping":
        return [outline(mask_hw, first, middle + 4), outline(mask_hw, middle - 4, last)]
    if form == "twice":  # nothing is covered exactly once
        return [outline(mask_hw, first, last)] * 2
    if form == "crowd":
        return runs(mask_hw)
    found = coco_mask.encode(np.asfortranarray(mask_hw.astype(np.uint8)))
    return {"size": found["size"], "counts": found["counts"].decode("ascii")}


FORMS = ("polygon", "overlapping", "apart", "crowd", "rle", "twice")


def scene(number: int) -> Scene:
    return make_scene(np.random.default_rng([7, number]), size_wh=SIZES_WH[number])


def write_refer(root: Path, *, dataset: str = "refcoco", protocol: int = 2) -> Path:
    """Write pictures, instances.json and two refs(*).p; entries of pictures lie apart."""
    (root / IMAGES).mkdir(parents=True)
    (root / dataset).mkdir()
    refs, annotations, images = [], [], []
    sentence_ids = itertools.count()
    for number in range(SCENES):
        drawn = scene(number)
        name = f"COCO_train2014_{number:012d}.jpg"
        Image.fromarray(drawn.image_hwc).save(root / IMAGES / name, quality=95)
        width, height = drawn.size_wh
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        said: dict[int, list[str]] = {}
        for expression in make_expressions(drawn, np.random.default_rng(number)):
            said.setdefault(expression.target, []).append(expression.text)
        for place, target in enumerate(sorted(said)[:3]):
            form = FORMS[(3 * number + place) % len(FORMS)]
            of_image = {"image_id": number, "category_id": 1}
            own = {"id": 100 * number + target, "iscrowd": int(form == "crowd")}
            outlines = segmentation(drawn.objects[target].mask_hw, form)
            annotations.append(of_image | own | {"segmentation": outlines})
            sentences = [
                {"raw": f" {text.upper()}!", "sent": text, "sent_id": next(sentence_ids)}
                for text in said[target][: 1 + (number + place) % 3]
            ]
            ref = {
                "ref_id": 1000 + own["id"],
                "ann_id": own["id"],
                "file_name": f"COCO_train2014_{number:012d}_{own['id']}.jpg",
                "split": "testA" if number == SCENES - 1 else "val",
                "sentences": sentences,
            }
            refs.append(of_image | ref)
    refs = refs[::2] + refs[1::2]
    instances = {"images": images, "annotations": annotations, "categories": []}
    (root / dataset / "instances.json").write_text(json.dumps(instances))
    for split_by in ("unc", "google"):
        file = root / dataset / f"refs({split_by}).p"
        file.write_bytes(pickle.dumps(refs, protocol=protocol))
    return root


def read_refs(root: Path) -> list[dict[str, Any]]:
    """Return the entries of refs(unc).p."""
    return list(pickle.loads((root / "refcoco/refs(unc).p").read_bytes()))


def edit_refs(root: Path, change: Any) -> None:
    """Change the entries of refs(unc).p in place."""
    refs = read_refs(root)
    change(refs)
    (root / "refcoco/refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))


def edit_instances(root: Path, change: Any) -> None:
    """Change instances.json in place."""
    file = root / "refcoco/instances.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """A JPEG whose EXIF says that it is turned; its pixels stay as they are stored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    segment = exif.tobytes()
    return jpeg[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + jpeg[2:]
