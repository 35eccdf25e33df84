"""The numbers of objects and sentences of each published split, and notes on other numbers.

Some copies of RefCOCO mix two partitions in one split; their scores cannot be compared with any
published table. The counts show which partition a split is.
"""

from itertools import combinations

# (objects, sentences) by dataset, partition and split. Objects: the table in the catalogue of
# TensorFlow Datasets (ref_coco), counted from REFER's files. Sentences: RefCOCO's from the
# documentation of FlagEval; the others as papers commonly print them, and their sums are the
# totals that are published: 141,564 for RefCOCO+ and 95,010 for RefCOCOg, in either partition.
# Those of RefCOCO's google partition seem to be unpublished.
PUBLISHED: dict[str, dict[str, dict[str, tuple[int, int | None]]]] = {
    "refcoco": {
        "unc": {
            "train": (42_404, 120_624),
            "val": (3_811, 10_834),
            "testA": (1_975, 5_657),
            "testB": (1_810, 5_095),
        },
        "google": {"train": (40_000, None), "val": (5_000, None), "test": (5_000, None)},
    },
    "refcoco+": {
        "unc": {
            "train": (42_278, 120_191),
            "val": (3_805, 10_758),
            "testA": (1_975, 5_726),
            "testB": (1_798, 4_889),
        }
    },
    "refcocog": {
        "umd": {"train": (42_226, 80_512), "val": (2_573, 4_896), "test": (5_023, 9_602)},
        "google": {"train": (44_822, 85_474), "val": (5_000, 9_536)},
    },
}
SPLITS = ("train", "val", "test", "testA", "testB")
DEFAULT_SPLIT_BY = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}


def partition_notes(
    dataset: str, split: str, *, split_by: str, objects: int, sentences: int
) -> tuple[str, ...]:
    """Return a note if the counts of a split are not those published for partition `split_by`.

    Objects are the rows of most mirrors.
    """
    partitions = {
        name: splits[split] for name, splits in PUBLISHED[dataset].items() if split in splits
    }
    wanted = partitions.get(split_by)
    if wanted is not None and objects == wanted[0] and sentences == (wanted[1] or sentences):
        return ()
    here = f"{dataset} {split} of {objects:,} objects and {sentences:,} sentences"
    for name, (count, said) in partitions.items():
        if name != split_by and objects == count and sentences == (said or sentences):
            return (f"{here} is the {name} partition, not {split_by}",)
    for several in range(2, len(partitions) + 1):
        for names in combinations(partitions, several):
            if sum(partitions[name][0] for name in names) == objects:
                parts = " plus ".join(f"{partitions[name][0]:,} {name}" for name in names)
                return (
                    f"{here} is a mixture of partitions ({parts}): "
                    "its scores cannot be compared with any published table",
                )
    if wanted is None:
        known = ", ".join(f"{name} {split}" for name in partitions) or "no partition of that name"
        return (f"{here} has no published counts for {split_by} ({known})",)
    also = "" if wanted[1] is None else f" and {wanted[1]:,} sentences"
    return (f"{here}: {split_by} {split} as published has {wanted[0]:,} objects{also}",)
