"""rism inside a Daft query: the actor of `rism map` as a function on columns.

python examples/batch/daft_pipeline.py examples
"""

import sys

import daft
import pyarrow as pa
from daft import DataType, Series, col
from daft.functions import download, unnest

from rism.batch import RismActor, encode

TEXTS = ["the green van", "the yellow cat"]
RESULTS = DataType.from_arrow_type(encode(pa.table({"id": []})).schema.field("results").type)


@daft.cls(max_concurrency=1)  # on GPUs: gpus=1, and one for each
class Rism:
    """Holds one segmenter."""

    def __init__(self) -> None:
        self.actor = RismActor(provider="cpu", threads=1)

    @daft.method.batch(return_dtype=RESULTS, batch_size=8)
    def find(self, path: Series, image: Series) -> pa.Array:
        """Find every expression in each image."""
        columns = {"id": path.to_arrow(), "image": image.to_arrow()}
        batch = pa.table({**columns, "expressions": [TEXTS] * len(path)})
        return encode(self.actor(batch)).column("results").combine_chunks()


rism = Rism()
rows = (
    daft.from_glob_path(f"{sys.argv[1]}/*.png")
    .with_column("result", rism.find(col("path"), download(col("path"))))
    .explode("result")
    .select(col("path"), unnest(col("result")))
    .sort(["path", "expression"])
)
for row in rows.iter_rows():
    name = row["path"].rpartition("/")[2]
    print(name, row["expression"], row["box_xyxy"], row["reason"] or row["error"] or "")
