"""Splits are known by their counts."""

import pytest

from rism.evaluation.datasets.splits import PUBLISHED, partition_notes


@pytest.mark.parametrize(
    ("dataset", "split_by", "split"),
    [
        (dataset, split_by, split)
        for dataset, partitions in PUBLISHED.items()
        for split_by, splits in partitions.items()
        for split in splits
    ],
)
def test_published_counts_need_no_note(dataset: str, split_by: str, split: str) -> None:
    objects, sentences = PUBLISHED[dataset][split_by][split]
    assert (
        partition_notes(
            dataset, split, split_by=split_by, objects=objects, sentences=sentences or 3 * objects
        )
        == ()
    )


def test_sums_are_the_published_totals() -> None:
    totals = {
        (dataset, split_by): (
            sum(objects for objects, _ in splits.values()),
            sum(sentences or 0 for _, sentences in splits.values()),
        )
        for dataset, partitions in PUBLISHED.items()
        for split_by, splits in partitions.items()
    }
    assert totals == {
        ("refcoco", "unc"): (50_000, 142_210),
        ("refcoco", "google"): (50_000, 0),
        ("refcoco+", "unc"): (49_856, 141_564),
        ("refcocog", "umd"): (49_822, 95_010),
        ("refcocog", "google"): (49_822, 95_010),
    }


@pytest.mark.parametrize(
    ("dataset", "split_by", "objects", "parts"),
    [
        ("refcoco", "unc", 8_811, "3,811 unc plus 5,000 google"),
        ("refcocog", "umd", 7_573, "2,573 umd plus 5,000 google"),
    ],
)
def test_mixtures_are_named(dataset: str, split_by: str, objects: int, parts: str) -> None:
    (note,) = partition_notes(
        dataset, "val", split_by=split_by, objects=objects, sentences=3 * objects
    )
    assert f"{dataset} val of {objects:,} objects" in note
    assert f"a mixture of partitions ({parts})" in note and "no published table" in note


def test_another_partition_than_asked_for() -> None:
    (note,) = partition_notes("refcocog", "val", split_by="umd", objects=5_000, sentences=9_536)
    assert note.endswith("is the google partition, not umd")


def test_other_counts_say_what_was_expected() -> None:
    (note,) = partition_notes("refcoco", "testA", split_by="unc", objects=1_975, sentences=1_975)
    assert "1,975 objects and 1,975 sentences" in note
    assert "unc testA as published has 1,975 objects and 5,657 sentences" in note
    (note,) = partition_notes("refcoco", "test", split_by="google", objects=10, sentences=12)
    assert note.endswith("google test as published has 5,000 objects")


def test_a_split_that_a_partition_has_not() -> None:
    (note,) = partition_notes("refcoco", "test", split_by="unc", objects=4_000, sentences=9_000)
    assert note.endswith("has no published counts for unc (google test)")
    (note,) = partition_notes("refcoco+", "test", split_by="unc", objects=4, sentences=9)
    assert note.endswith("has no published counts for unc (no partition of that name)")
