import os
from pathlib import Path

import pytest

from rism.cli.file_names import distinct, file_stem, readable, slugs
from rism.cli.outputs import Destination
from rism.runtime.result.rendering import KINDS


def test_slugs_are_readable_and_distinct() -> None:
    assert slugs(["The green van!", "the  green van", "the-green-van"]) == [
        "the-green-van",
        "the-green-van-2",
        "the-green-van-3",
    ]
    assert slugs(["../../etc/passwd", "红色的车", "लाल कार"]) == [
        "etc-passwd",
        "红色的车",
        "लाल-कार",
    ]


def test_what_is_cut_or_unreadable_ends_in_a_digest_of_the_whole() -> None:
    """So that two runs, which know nothing of each other, do not share a name."""
    alike = ["é" * 500, "é" * 499, "???", "!"]
    alone = [slugs([each])[0] for each in alike]
    assert len(set(alone)) == 4 == len(set(slugs(alike)))
    assert all(len(slug.encode()) <= 60 for slug in alone)
    assert alone[2].startswith("expression-")
    chinese = [f"{'照片' * 25}{number}.png" for number in "一二"]
    assert file_stem(chinese[0]) != file_stem(chinese[1])


@pytest.mark.parametrize("name", ["x" * 250, "界" * 80, "caf\udce9", "a\nb\x1b[2J", "e\u0301"])
def test_names_fit_the_file_system(name: str, tmp_path: Path) -> None:
    (slug,) = slugs(["y" * 99])
    for kind in KINDS:
        path = Destination(kinds=(kind,), folder=tmp_path).path(file_stem(name), [slug], 0, kind)
        path.write_bytes(b"")
        os.fsencode(path.name).decode()
        assert path.name.isprintable()


def test_numbers_hold_where_case_and_form_do_not_count() -> None:
    names = distinct(["cat", "Cat", "cat-2", "caf\u00e9", "cafe\u0301", "Stra\u00dfe", "STRASSE"])
    assert names == [
        "cat", "Cat-2", "cat-2-2", "caf\u00e9", "cafe\u0301-2", "Stra\u00dfe", "STRASSE-2",
    ]  # fmt: skip


def test_bytes_that_are_no_text_are_kept_beside_it() -> None:
    assert readable("caf\u00e9") == ("caf\u00e9", None)
    # How an ASCII locale hands over "é" in UTF-8.
    assert readable("caf\udcc3\udca9") == ("caf\u00e9", None)
    assert readable("caf\udce9") == ("caf\ufffd", b"caf\xe9")
