"""A folder that appears under its name whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rism.runtime.errors import OutputError

_LOCK = "exporting.lock"


def check_output(output: Path) -> None:
    """Refuse a place that holds something already.

    Raises:
        OutputError: It is a file, a link, or a folder that is not empty.
    """
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise OutputError(f"{output} is not a folder: choose another place with -o")
    if output.is_dir() and any(output.iterdir()):
        raise OutputError(
            f"{output} exists and is not empty: remove it or choose another place with -o"
        )


@contextmanager
def atomic_folder(output: Path) -> Iterator[Path]:
    """Give a hidden folder beside `output`, which takes its name if all goes well.

    Whatever raises inside removes it. A process that is killed leaves it behind, locked by
    nobody: the next export to the same place removes it.

    Raises:
        OutputError: The place cannot be written.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(output)
        work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise _unwritable(output, error) from None
    lock = FileLock(work / _LOCK)
    try:
        lock.acquire(timeout=0)
        # mkdtemp makes a folder for its owner alone; a bundle is an ordinary folder.
        work.chmod(0o777 & ~_umask())
        yield work
        lock.release()
        (work / _LOCK).unlink(missing_ok=True)
        if output.is_dir():
            output.rmdir()
        work.replace(output)
    except OSError as error:
        raise _unwritable(output, error) from None
    finally:
        lock.release()
        shutil.rmtree(work, ignore_errors=True)


def _remove_abandoned(output: Path) -> None:
    for folder in output.parent.glob(f".{output.name}.*"):
        if not (folder / _LOCK).is_file() or folder.is_symlink():
            continue  # not one of ours
        lock = FileLock(folder / _LOCK)
        try:
            with lock.acquire(timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except Timeout:
            continue  # another export is at work there


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _unwritable(output: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{output} cannot be written ({error.strerror or error}): choose a folder on a disk with "
        "room that you may write to; nothing was left there"
    )
