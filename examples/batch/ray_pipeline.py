"""rism inside a Ray Data pipeline of your own: the actor of `rism map`, between any other stages.

python examples/batch/ray_pipeline.py examples
"""

import sys

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy

from rism.batch import RismActor, decode, encode, to_rows

TEXTS = ["the green van", "the yellow cat"]


def named(batch: pa.Table) -> pa.Table:
    """Turn Ray's columns `bytes` and `path` into what `decode` takes."""
    texts = [TEXTS] * len(batch)
    return pa.table({"id": batch["path"], "image": batch["bytes"], "expressions": texts})


rows = (
    ray.data.read_binary_files(sys.argv[1], include_paths=True, file_extensions=["png"])
    .map_batches(named, batch_format="pyarrow")
    .map_batches(decode, batch_format="pyarrow", batch_size=8)  # 8 images' pixels at once
    .map_batches(
        RismActor,
        fn_constructor_kwargs={"bundle": None, "provider": "cpu", "threads": 1},
        compute=ActorPoolStrategy(size=1),  # on GPUs: size=8, num_gpus=1, provider="auto"
        batch_format="pyarrow",
    )
    .map_batches(encode, batch_format="pyarrow")
    .map_batches(to_rows, batch_format="pyarrow")
)
for row in sorted(rows.take_all(), key=lambda row: (row["id"], row["expression"])):
    print(row["id"], row["expression"], row["box_xyxy"], row["reason"] or row["error"] or "")
