"""Splits are identified by their counts."""

import pytest

from rism.evaluation.datasets.splits import PUBLISHED, partition_notes


def test_published_counts_need_no_note_and_have_the_published_totals() -> None:
    totals: dict[tuple[str, str], list[int]] = {}
    for dataset, partitions in PUBLISHED.items():
        for split_by, splits in partitions.items():
            for split, (objects, sentences) in splits.items():
                counts = {"objects": objects, "sentences": sentences or 3 * objects}
                assert not partition_notes(dataset, split, split_by=split_by, **counts)
                total = totals.setdefault((dataset, split_by), [0, 0])
                total[0], total[1] = total[0] + objects, total[1] + (sentences or 0)
    assert totals == {
        ("refcoco", "unc"): [50_000, 142_210],
        ("refcoco", "google"): [50_000, 0],
        ("refcoco+", "unc"): [49_856, 141_564],
        ("refcocog", "umd"): [49_822, 95_010],
        ("refcocog", "google"): [49_822, 95_010],
    }


OTHER_COUNTS = """
refcoco unc val 8811 3: a mixture of partitions (3,811 unc plus 5,000 google)
refcocog umd val 7573 9: a mixture of partitions (2,573 umd plus 5,000 google)
refcocog umd val 5000 9536: is the google partition, not umd
refcoco unc testA 1975 1975: testA of 1,975 objects and 1,975 sentences
refcoco unc testA 1975 9: unc testA as published has 1,975 objects and 5,65
refcoco google test 10 12: google test as published has 5,000 objects
refcoco unc test 4000 9: has no published counts for unc (google test)
refcoco+ unc test 4 9: published counts for unc (no partition of that name)
"""


@pytest.mark.parametrize("line", OTHER_COUNTS.strip().splitlines())
def test_other_counts_are_explained(line: str) -> None:
    asked, _, note = line.partition(": ")
    dataset, split_by, split, objects, sentences = asked.split()
    counts = {"objects": int(objects), "sentences": int(sentences)}
    (found,) = partition_notes(dataset, split, split_by=split_by, **counts)
    assert note in found
