"""Pickles of strangers are read as data, or not at all."""

import os
import pickle
import pickletools
import struct
from pathlib import Path
from typing import Any

import pytest

from rism.evaluation.datasets.safe_pickle import load_plain_pickle
from rism.runtime.errors import InputError

PLAIN = [
    {
        "ref_id": 7,
        "sentences": [{"raw": "the caf\u00e9 \u2014 left", "sent_id": 2**40, "tokens": ["a", ""]}],
        "numbers": [0, -1, 255, 256, 65536, -(2**31), 2**63, 0.5, float("inf")],
        "rest": [True, False, None, {}, []],
        3: "a key that is no text",
    },
    {"long": "x" * 300, "lines": "a\nb\\c'd\""},
]


PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def load(tmp_path: Path, data: bytes) -> Any:
    file = tmp_path / "refs(unc).p"
    file.write_bytes(data)
    return load_plain_pickle(file)


def test_plain_values_of_every_protocol(tmp_path: Path) -> None:
    many = [{"ref_id": n, "sent": f"sentence {n}"} for n in range(5000)]  # several frames
    words = ["cos\nsystem\n(S'true'\ntR.", "\x93\x81R", "(((((", "]" * 70]  # looks like opcodes
    for protocol in PROTOCOLS:
        for values in (PLAIN, many, words):
            assert load(tmp_path, pickle.dumps(values, protocol=protocol)) == values


def test_what_python_2_wrote(tmp_path: Path) -> None:
    """Byte strings as `S` lines and as `U`, unicode as `V`, integers as `I` and `L`."""
    text = (
        b"(lp1\n(dp2\nS'raw'\np3\nS'caf\\xe9'\np4\nsS'sent'\np5\nVcaf\\u00e9\np6\ns"
        b"S'ref_id'\np7\nI12\nsS'ann_id'\np8\nL34L\nsS'right'\np9\nI01\nsa."
    )
    expected = [
        {"raw": "caf\u00e9", "sent": "caf\u00e9", "ref_id": 12, "ann_id": 34, "right": True}
    ]
    assert load(tmp_path, text) == expected
    binary = b"\x80\x02]q\x01}q\x02(U\x03rawq\x03U\x04caf\xe9q\x04T\x04\x00\x00\x00sentK\x05ua."
    assert load(tmp_path, binary) == [{"raw": "caf\u00e9", "sent": 5}]


class _Runs:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def test_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for protocol in PROTOCOLS:
        data = pickle.dumps([{"sent": _Runs()}], protocol=protocol)
        with pytest.raises(InputError, match=r"refs\(unc\).p.*it was not run"):
            load(tmp_path, data)
        assert not (tmp_path / "ran").exists()
        pickle.loads(data)  # the same bytes, as others read them
        (tmp_path / "ran").rmdir()
    with pytest.raises(InputError, match=r"GLOBAL of os\.system at byte 0"):
        load(tmp_path, b"cos\nsystem\n(S'true'\ntR.")


PLAIN_CODES = set(b"(N]lae}dsu\x88\x89\x94\x80KhqMJjrG\x95ILFVSgpU\x8cCTBX\x8a.")


def test_every_other_instruction_is_refused(tmp_path: Path) -> None:
    others = [code for code in pickletools.opcodes if ord(code.code) not in PLAIN_CODES]
    assert len(others) > 20
    for opcode in others:
        data = b"(lp0\n" + opcode.code.encode("latin-1") + b"os\nsystem\n" + b"\x00" * 8 + b"."
        with pytest.raises(InputError, match=f"with {opcode.name}"):
            load(tmp_path, data)
    # Thirty-five tuples, each twice in the next: hashing the last takes 2**35 steps.
    nested = b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(35))
    with pytest.raises(InputError, match="TUPLE2"):
        load(tmp_path, b"\x80\x02}N" + nested + b"Ns.")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02N" + b"r" + struct.pack("<I", 2**28) + b".",
        b"\x80\x02N" + b"r" + struct.pack("<I", 2**32 - 1) + b".",
        b"Np999999999\n.",
    ],
    ids=["2**28", "2**32", "text"],
)
def test_a_memo_that_fills_the_memory(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InputError, match="more memory than its values need"):
        load(tmp_path, data)


def test_damaged_files(tmp_path: Path) -> None:
    damaged = [
        b"", b"]", b"no pickle at all", b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x02T\xff\xff\xff\xffabc.", b"\x80\x63].", b"]h\x07.", b"a.",
        b"I" + b"9" * 60 + b"\n.", b"}]Ns.", b"\x8a\xff\x01.",
    ]  # fmt: skip
    for protocol in (0, 2, 4):
        whole = pickle.dumps(PLAIN, protocol=protocol)
        damaged += [whole[:end] for end in range(0, len(whole) - 1, 7)]
    for data in damaged:
        with pytest.raises(InputError, match=r"refs\(unc\).p"):
            load(tmp_path, data)
    with pytest.raises(InputError, match=r"cannot be read \(No such file"):
        load_plain_pickle(tmp_path / "refs(umd).p")


def test_deep_nesting_is_only_a_value(tmp_path: Path) -> None:
    depth = 200_000
    found = load(tmp_path, b"]" * depth + b"a" * (depth - 1) + b".")
    for _ in range(depth - 1):
        (found,) = found
    assert found == []


def test_too_many_lists(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="more lists and dicts"):
        load(tmp_path, b"(" + b"]" * (2**24 + 1) + b"l.")
