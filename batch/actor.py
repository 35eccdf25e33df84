"""A segmenter in a process of its own, fed with tables."""

from collections.abc import Mapping
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa

from rism.batch.images import decode
from rism.batch.tables import FOUND, table
from rism.runtime.errors import BundleError, InputError
from rism.runtime.options import SegmentOptions
from rism.runtime.result.segmentation import Segmentation
from rism.runtime.segmenter import Segmenter


class RismActor:
    """Segments the images of a table: a class for `map_batches` of Ray Data, or a UDF of Daft.

    >>> actor = RismActor(provider="cpu", threads=1)
    >>> batch = pa.table({"id": ["a"], "image": [png], "expressions": [["the green van"]]})
    >>> rows = to_rows(encode(actor(batch)))
    """

    def __init__(
        self,
        bundle: str | None = None,
        *,
        options: SegmentOptions | None = None,
        digest: str | None = None,
        **settings: Any,
    ) -> None:
        """Load a bundle once.

        Args:
            bundle: see `Segmenter.from_bundle`; on a cluster, a place that every node sees.
            options: see `SegmentOptions`.
            digest: refuse a bundle with another digest.
            settings: other arguments of `Segmenter.from_bundle`.

        Raises:
            RismError: as `Segmenter.from_bundle`; or the bundle is another.
        """
        self.segmenter = Segmenter.from_bundle(bundle, **settings)
        self._options: SegmentOptions = options or {}
        if digest is not None and digest != self.segmenter.bundle.digest:
            raise BundleError(
                f"bundle '{self.segmenter.bundle.path}' is another than the run's: give every node "
                "the same"
            )

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Find all expressions of each image, in one call for each.

        Args:
            batch: what `decode` yields, or what it takes.

        Returns:
            A row for each image: id, height, width, and `found`: for each of its expressions the
            mask (a bit for each pixel), confidence, separability, reason, error. `encode` and
            `to_rows` make rows with COCO RLE of it.
        """
        if "pixels" not in batch.column_names:
            batch = pa.concat_tables(decode(batch))
        pixels = batch.column("pixels")
        plain = batch.drop_columns(["pixels"]).to_pylist()
        return table([self._image(row, pixels[number]) for number, row in enumerate(plain)], FOUND)

    def _image(self, row: Mapping[str, Any], pixels: pa.Scalar) -> dict[str, Any]:
        start = perf_counter()
        texts, error = row["expressions"] or [None], row["error"]
        if error is None:
            data = np.frombuffer(pixels.as_buffer(), np.uint8)
            found = self._segment(data.reshape(row["height"], row["width"], 3), texts)
        else:
            found = [{"expression": text, "error": error} for text in texts]
        kept = {name: row.get(name) for name in ("id", "height", "width", "read_s", "decode_s")}
        return {
            **kept,
            "found": found,
            "provider": self.segmenter.provider,
            "precision": self.segmenter.precision,
            "segment_s": perf_counter() - start,
        }

    def _segment(self, pixels_hwc: Any, texts: list[str]) -> list[dict[str, Any]]:
        try:
            state = self.segmenter.set_image(pixels_hwc)
        except InputError as error:
            return [{"expression": text, "error": str(error)} for text in texts]
        try:
            found = self.segmenter.segment(state, texts, **self._options)
            return [_record(text, each) for text, each in zip(texts, found, strict=True)]
        except InputError as error:
            if len(texts) == 1:
                return [{"expression": texts[0], "error": str(error)}]
        # One of them cannot be used; the others have results.
        return [record for text in texts for record in self._segment(pixels_hwc, [text])]


def _record(text: str, result: Segmentation) -> dict[str, Any]:
    return {
        "expression": text,
        "mask": np.packbits(result.mask_hw).tobytes(),
        "confidence": result.confidence,
        "separability": result.separability,
        "reason": result.reason,
    }
