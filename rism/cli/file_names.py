"""Names of result files, and text that came from the command line or a folder as bytes.

A name that was shortened, or of which nothing readable was left, ends in a digest of the whole
text, so that two runs do not give the same name to different things.
"""

import hashlib
import os
import unicodedata
from collections.abc import Sequence

from rism.runtime.errors import InputError, one_line

# With a number, the kind and ".png" below the 255 bytes that file systems allow.
_SLUG_BYTES = 60
_STEM_BYTES = 120
_DIGITS = 8


def readable(text: str) -> tuple[str, bytes | None]:
    """Return a path as text that is valid Unicode, and its bytes where they are not UTF-8.

    Python keeps a byte that the locale cannot decode as half a surrogate pair (PEP 383), which
    other programs cannot read in JSON.
    """
    raw = os.fsencode(text)
    try:
        return raw.decode(), None
    except UnicodeDecodeError:
        clean = raw.decode(errors="replace")
        return (clean, raw) if any("\ud800" <= c <= "\udfff" for c in text) else (text, None)


def as_text(argument: str) -> str:
    """Return an argument as text, in any locale.

    Raises:
        InputError: it is not UTF-8.
    """
    text, raw = readable(argument)
    if raw is not None:
        raise InputError(f"'{one_line(text, limit=80)}' is not valid UTF-8: type it in UTF-8")
    return text


def file_stem(name: str) -> str:
    """Return the beginning of the names of a file's results: printable, UTF-8, not too long."""
    text = unicodedata.normalize("NFC", readable(name)[0])
    clean = "".join(c if c.isprintable() and c != "\ufffd" else "_" for c in text)
    return _for_files(_shortened(clean, _STEM_BYTES, os.fsencode(name), lost=clean != text))


def slugs(expressions: Sequence[str]) -> list[str]:
    """Turn expressions into distinct parts of file names.

    >>> slugs(["The green van!", "the  green van"])
    ['the-green-van', 'the-green-van-2']
    """
    return [_for_files(slug) for slug in distinct([_slug(each) for each in expressions])]


def joined(slugs: Sequence[str]) -> str:
    """Return one part of file names for several expressions.

    >>> joined(["the-van", "the-cat"])
    'the-van+the-cat'
    """
    whole = os.fsencode("+".join(slugs))
    return _for_files(_shortened(whole.decode(), _SLUG_BYTES, whole, lost=False))


def distinct(names: Sequence[str]) -> list[str]:
    """Number the names that a file system might not tell from an earlier one.

    >>> distinct(["cat", "Cat", "cat"])
    ['cat', 'Cat-2', 'cat-3']
    """
    taken: set[str] = set()
    numbers: dict[str, int] = {}
    made = []
    for name in names:
        new, key = name, fold(name)
        while fold(new) in taken:
            numbers[key] = numbers.get(key, 1) + 1
            new = f"{name}-{numbers[key]}"
        taken.add(fold(new))
        made.append(new)
    return made


def fold(name: str) -> str:
    """Return a key that is equal for names that some file systems do not tell apart."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _slug(expression: str) -> str:
    text = unicodedata.normalize("NFC", expression).lower()
    # Combining marks are part of a word: in many scripts they are the vowels.
    words = "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in text)
    slug = "-".join(words.split())
    return _shortened(slug or "expression", _SLUG_BYTES, expression.encode(), lost=not slug)


def _shortened(name: str, limit: int, whole: bytes, *, lost: bool) -> str:
    if not lost and len(name.encode()) <= limit:
        return name
    start = name.encode()[: limit - _DIGITS - 1].decode(errors="ignore")
    return f"{start.rstrip('-')}-{hashlib.sha256(whole).hexdigest()[:_DIGITS]}"


def _for_files(name: str) -> str:
    """Return a name that is UTF-8 on the disk in any locale."""
    return os.fsdecode(name.encode())
