"""Reads pickles from unknown sources safely: lists, dicts, text and numbers only.

REFER's sentences are in pickles, and Python's own reader runs a pickle as a program. Here every
instruction is checked first, and the `Unpickler` cannot look up any name either.
"""

import io
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any, NoReturn

from rism.runtime.errors import InputError, one_line

MAX_BYTES = 2**28
MAX_CONTAINERS = 2**24

# The permitted instructions, by the length of their argument: nothing, one, two, four or eight
# bytes, or a line. Large indices of the memo are refused, because the memo would fill the memory.
# Tuples and sets are refused, because nested and shared ones take too long to be hashed as keys.
_FIXED = re.compile(
    rb"""(?:
      [(N\]lae}dsu\x88\x89\x94]    # MARK NONE LIST APPEND DICT SETITEM TRUE FALSE MEMOIZE
    | [\x80Khq].                    # PROTO BININT1 BINGET BINPUT
    | M..                           # BININT2
    | [Jj]....                      # BININT LONG_BINGET
    | r..[\x00-\xff]\x00            # LONG_BINPUT, below 2**24
    | [G\x95].{8}                   # BINFLOAT FRAME
    | [ILF][^\n]{1,40}\n            # INT LONG FLOAT
    | [VS][^\n]*\n                  # UNICODE STRING
    | g[0-9]{1,8}\n                 # GET
    | p[0-9]{1,7}\n                 # PUT
    ){1,256}+""",
    re.DOTALL | re.VERBOSE,
)
# Instructions with a length before their argument: the number of bytes of that length.
_COUNTED = {b"U": 1, b"C": 1, b"\x8a": 1, b"\x8c": 1, b"T": 4, b"B": 4, b"X": 4}
_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


class _Unpickler(pickle.Unpickler):
    """Python's reader without access to names."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {pid!r:.40} from outside")


def load_plain_pickle(file: Path) -> object:
    """Read a pickle of lists, dicts, text, numbers, True, False and None.

    Any protocol, also files of Python 2 (byte strings are read as Latin-1, as is usual for REFER's
    files).

    Raises:
        InputError: it cannot be read, is larger than 256 MiB, has other values, or is damaged.
            Nothing of it was run.
    """
    name = f"'{one_line(file)}'"
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{name} cannot be read ({one_line(error.strerror or error)}): check the path"
        ) from None
    if len(data) > MAX_BYTES:
        raise InputError(
            f"{name} is larger than {MAX_BYTES // 2**20} MiB, and no file of REFER is: "
            "get it again from where REFER says"
        )
    containers = sum(data.count(code) for code in (b"]", b"}", b"l", b"d"))  # an upper bound
    if containers > MAX_CONTAINERS:
        raise InputError(f"{name} has more lists and dicts than a file of REFER: get it again")
    _check_instructions(data, name)
    try:
        return _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises errors of any kind
        raise _damaged(name, one_line(error, limit=80)) from None


def _check_instructions(data: bytes, name: str) -> None:
    """Raise an `InputError` at an instruction that builds more than plain values."""
    place, end = 0, len(data)
    while place < end:
        run = _FIXED.match(data, place)
        if run is not None:
            place = run.end()
        code = data[place : place + 1]
        width = _COUNTED.get(code)
        if width is not None:
            start = place + 1 + width
            place = start + int.from_bytes(data[place + 1 : start], "little")
        elif code == b".":
            return
        elif run is None or code not in b"(N]lae}dsu\x88\x89\x94\x80KhqMJjrG\x95ILFVSgp":
            _refuse(data, place, name)
    raise _damaged(name, "it is cut short")


def _refuse(data: bytes, place: int, name: str) -> NoReturn:
    """Raise the error for the instruction at a place."""
    code = data[place]
    if code in b"rp":
        raise InputError(
            f"{name} is a pickle that asks for more memory than its values need, at byte {place}:"
            " it does not come from REFER, do not open it with anything else"
        )
    if code not in _NAMES or bytes([code]) in b"ILFVSgpMJjG\x80\x95Khq":
        raise _damaged(name, f"byte {place} is not a known instruction")
    named = ""
    if _NAMES[code] == "GLOBAL":
        words = data[place + 1 : place + 200].decode("latin-1").split("\n")[:2]
        named = f" of {one_line('.'.join(words), limit=80)}"
    raise InputError(
        f"{name} is a pickle with {_NAMES[code]}{named} at byte {place}, expected lists, dicts, "
        "text and numbers only: it was not run, and does not come from REFER as it is"
    )


def _damaged(name: str, why: str) -> InputError:
    return InputError(
        f"{name} is damaged or not a pickle ({why}): get it again from where REFER says"
    )
