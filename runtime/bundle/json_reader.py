"""Typed reading of untrusted JSON: every refusal names the key.

A manifest may come from a stranger, so types, ranges, lengths and counts are checked here.
Unknown keys are ignored.
"""

import json
import re
import stat
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from rism.runtime.distribution import DISTRIBUTION
from rism.runtime.errors import BundleError, InputError, RismError, one_line

MAX_TEXT = 8192
MAX_ENTRIES = 4096
_DIGEST = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"(\d{1,6})\.\d{1,6}", re.ASCII)
SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@-]*(/[A-Za-z0-9_][A-Za-z0-9._+@-]*)*")


class Node:
    """One JSON object of the manifest, or of a file beside it, with the path that led to it.

    All methods raise `error` naming the full key when a value is missing, of the wrong type, or
    out of range.
    """

    def __init__(
        self,
        data: object,
        path: str = "",
        *,
        document: str = "manifest.json",
        mend: str = "export the bundle again",
        error: type[RismError] = BundleError,
    ) -> None:
        self.path = path
        self._document, self._mend, self._error = document, mend, error
        shown = f"{document}: " + (f"key '{path}'" if path else "the top level")
        if not isinstance(data, dict):
            raise error(f"{shown} is {_kind(data)}, expected an object: {mend}")
        if len(data) > MAX_ENTRIES:
            raise error(f"{shown} has {len(data)} entries, expected at most {MAX_ENTRIES}: {mend}")
        self._data: Mapping[str, Any] = data

    def full(self, key: str) -> str:
        """Return the key with its path, as messages show it."""
        return one_line(f"{self.path}.{key}" if self.path else key, limit=120)

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Raise the error for one key."""
        found = _kind(self._data[key]) if key in self._data else "missing"
        raise self._error(
            f"{self._document}: key '{self.full(key)}' is {found}, expected {expected}: "
            f"{self._mend}"
        )

    def has(self, key: str) -> bool:
        """Tell whether the key is present."""
        return key in self._data

    def names(self) -> list[str]:
        """Return the keys, in the file's order."""
        return list(self._data)

    def raw(self, key: str) -> object:
        """Return the unchecked value, or None."""
        return self._data.get(key)

    def node(self, key: str) -> "Node":
        """Return the object under the key."""
        if not isinstance(self._data.get(key), dict):
            self.refuse(key, "an object")
        return self._below(self._data[key], key)

    def node_or_empty(self, key: str) -> "Node":
        """Return the object under the key, or an empty one."""
        return self.node(key) if key in self._data else self._below({}, key)

    def _below(self, data: object, key: str) -> "Node":
        return Node(
            data, self.full(key), document=self._document, mend=self._mend, error=self._error
        )

    def text(self, key: str, *, default: str | None = None, multiline: bool = False) -> str:
        """Return a printable string; newlines and tabs only where `multiline`."""
        if key not in self._data and default is not None:
            return default
        value = self._data.get(key)
        allowed = "\n\t" if multiline else ""
        if (
            not isinstance(value, str)
            or len(value) > MAX_TEXT
            or any(not (c.isprintable() or c in allowed) for c in value)
        ):
            self.refuse(key, f"printable text of at most {MAX_TEXT} characters")
        return value

    def integer(self, key: str, low: int, high: int, *, default: int | None = None) -> int:
        """Return an integer in [low, high]; `default` where the key is absent or null."""
        value = self._data.get(key)
        if value is None and default is not None:
            return default
        if not is_integer(value, low, high):
            self.refuse(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float, *, default: float | None = None) -> float:
        """Return a finite number in [low, high]; `default` where the key is absent."""
        if key not in self._data and default is not None:
            return default
        value = self._data.get(key)
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not low <= value <= high  # NaN, too
        ):
            self.refuse(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        """Return a boolean, or the default where the key is absent."""
        value = self._data.get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return value

    def choice(self, key: str, options: tuple[str, ...], *, default: str | None = None) -> str:
        """Return one of the options."""
        if key not in self._data and default is not None:
            return default
        value = self._data.get(key)
        if not isinstance(value, str) or value not in options:
            self.refuse(key, "one of " + ", ".join(f"'{o}'" for o in options))
        return value

    def items(self, key: str, *, most: int) -> list[object]:
        """Return a list of at most `most` entries."""
        value = self._data.get(key)
        if not isinstance(value, list) or len(value) > most:
            self.refuse(key, f"a list of at most {most} entries")
        return value

    def sizes(self, key: str) -> tuple[int, ...]:
        """Return a shape: at most 8 sizes from 1 to 2**31."""
        values = self.items(key, most=8)
        found = tuple(value for value in values if is_integer(value, 1, 2**31))
        if len(found) != len(values):
            self.refuse(key, f"a list of at most 8 sizes, 1 to {2**31}")
        return found

    def matching(self, key: str, pattern: re.Pattern[str], expected: str) -> str:
        """Return a string that matches a pattern as a whole."""
        value = self._data.get(key)
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            self.refuse(key, expected)
        return value

    def digest(self, key: str) -> str:
        """Return a SHA-256."""
        return self.matching(key, _DIGEST, "64 lower-case hexadecimal digits")

    def version(self, reads_major: int) -> str:
        """Return "schema_version", of the one major version that this reader reads."""
        version = self.text("schema_version")
        match = _VERSION.fullmatch(version)
        if match is None or int(match[1]) < reads_major:
            self.refuse("schema_version", f"a version such as {reads_major}.0")
        if int(match[1]) > reads_major:
            raise self._error(
                f"{self._document} was made by a newer rism (format {version}, this reads "
                f"{reads_major}.x): install a newer {DISTRIBUTION}, or {self._mend}"
            )
        return version

    def listed_file(self, key: str, files: Container[str]) -> str:
        """Return the name of a file that the manifest lists with its size and hash."""
        name = self._data.get(key)
        if not isinstance(name, str) or not is_safe_name(name):
            self.refuse(key, "a relative path inside the bundle (letters, digits, . _ + - @ and /)")
        if name not in files:
            raise BundleError(
                f"{self._document}: key '{self.full(key)}' names '{name}', which 'files' of "
                f"manifest.json does not list: {self._mend}"
            )
        return name


def parse_json(
    raw: bytes,
    document: str = "manifest.json",
    *,
    mend: str = "export the bundle again",
    error: type[RismError] = BundleError,
) -> object:
    """Parse JSON text, which may be anybody's; for the arguments see `Node`."""
    try:
        data: object = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as reason:
        raise error(
            f"{document} is not readable JSON ({one_line(reason, limit=120)}): {mend}"
        ) from None
    return data


def read_own_file(path: Path, command: str, *, most: int) -> bytes:
    """Read a file of at most `most` bytes that a command of rism made.

    Raises:
        InputError: it is missing, not a plain file, too large, or cannot be read.
    """
    name, expected = one_line(path.name, limit=60), f"expected one made with {command}"
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would never end
            raise InputError(f"{name} is not a plain file, {expected}")
        with path.open("rb") as file:
            raw = file.read(most + 1)
    except FileNotFoundError:
        raise InputError(f"{one_line(path)} is not there, {expected}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{one_line(path)} cannot be read: {one_line(reason)}") from None
    if len(raw) > most:
        raise InputError(f"{name} is larger than {most >> 20} MiB, {expected}")
    return raw


def is_safe_name(name: str) -> bool:
    """Tell whether a file name is relative, plain, and stays inside its folder.

    No `..`, no absolute or drive path, no backslash, no hidden parts, at most 200 characters.
    """
    return len(name) <= 200 and SAFE_NAME.fullmatch(name) is not None


def is_integer(value: object, low: int, high: int) -> TypeGuard[int]:
    """Tell whether a value is an integer, and no boolean, in [low, high]."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _kind(value: object) -> str:
    """Describe a wrong value in a few words, for a message."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**18:
        return "a huge integer"
    return one_line(repr(value), limit=60)
