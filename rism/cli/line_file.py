"""A file of JSON Lines that grows while a run goes on, and is read again to resume it."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rism.cli.result_format import json_line
from rism.runtime.errors import OutputError, one_line


class LineFile:
    """Lines of JSON objects that are appended; each is there whole, or cut off at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the objects so far; none if there is no file. A line that is cut off is left out.

        Raises:
            OutputError: it cannot be read, or a line is something else.
        """
        number = 0
        try:
            with self.path.open("rb") as lines:
                for line in lines:
                    number += 1
                    if line.endswith(b"\n"):
                        found = json.loads(line)
                        if not isinstance(found, dict):
                            raise ValueError("it is no object")
                        yield found
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"cannot read {self.path}: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            raise OutputError(
                f"line {number} of {one_line(self.path)} is not of an earlier run "
                f"({one_line(error, limit=80)}): choose another file with -o"
            ) from None

    def open(self) -> None:
        """Make ready to append, after the last whole line.

        Raises:
            OutputError: it cannot be written.
        """
        with self._errors():
            self._file = self.path.open("a+b", buffering=0)
            size = self._file.seek(0, 2)
            end = size
            while end > 0:  # a line that is cut off may be long
                start = max(0, end - 2**16)
                self._file.seek(start)
                at = self._file.read(end - start).rfind(b"\n")
                end = start + at + 1 if at >= 0 else start
                if at >= 0:
                    break
            if end < size:
                self._file.truncate(end)

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Add lines, all of them or none.

        Raises:
            OutputError: there is no space left.
        """
        assert self._file is not None
        data = memoryview("".join(map(json_line, records)).encode())
        with self._errors():
            size = self._file.seek(0, 2)
            try:
                while data:
                    data = data[self._file.write(data) or 0 :]
            except BaseException:
                with contextlib.suppress(OSError):
                    self._file.truncate(size)
                raise

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from None
