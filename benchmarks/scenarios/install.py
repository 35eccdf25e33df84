"""What an installation takes on the disk, from the metadata of what is installed here.

A wheel's own list of files says what it brought; what it needs, what else comes. Nothing is
fetched: packages that this machine lacks are an error, not zero.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from benchmarks.harness.errors import ScenarioError
from benchmarks.harness.rows import Row, Task, of_value
from rism.runtime.distribution import DISTRIBUTION

ROOT = Path(__file__).parents[2]


def measure(task: Task) -> list[Row]:
    """Compare rism with one extra, rism with another, and the wheel alone."""
    own = _own_bytes()
    rows = []
    for extra in (task["against"], task["extra"]):
        sizes = _closure(extra)
        largest = dict(sorted(sizes.items(), key=lambda item: -item[1])[:6])
        row, total = f"{DISTRIBUTION}[{extra}]", own + sum(sizes.values())
        rows.append(of_value(row, total, packages=len(sizes), of=largest))
    return [*rows, of_value("rism alone", own)]


def _project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def _own_bytes() -> int:
    """Size of the files that the wheel has, by the folders that pyproject.toml names."""
    settings = _project()["tool"]["setuptools"]
    places = settings["package-dir"]
    found: set[Path] = set()
    for package in settings["packages"]:
        homes = [home for home in places if package == home or package.startswith(f"{home}.")]
        home = max(homes, key=len)
        folder = ROOT / places[home] / Path(*package.split(".")[len(home.split(".")) :])
        found |= set(folder.glob("*.py"))
        for pattern in settings["package-data"].get(package, []):
            found |= {each for each in folder.glob(pattern) if each.is_file()}
            if pattern.endswith("/**"):
                found |= {each for each in folder.glob(f"{pattern}/*") if each.is_file()}
    return sum(each.stat().st_size for each in found)


def _closure(extra: str) -> dict[str, int]:
    """Bytes of every package that rism needs with an extra, by name."""
    project = _project()["project"]
    extras = project["optional-dependencies"]
    if extra not in extras:
        raise ScenarioError(f"there is no extra '{extra}', expected one of {', '.join(extras)}")
    left = [Requirement(text) for text in (*project["dependencies"], *extras[extra])]
    sizes: dict[str, int] = {}
    asked: set[tuple[str, frozenset[str]]] = set()
    while left:
        wanted = left.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if (name, frozenset(wanted.extras)) in asked:
            continue
        asked.add((name, frozenset(wanted.extras)))
        try:
            found = distribution(name)
        except PackageNotFoundError:
            raise ScenarioError(
                f"{name}, which the extra {extra} needs, is not installed: its size is not known"
            ) from None
        sizes[name] = _bytes(found)
        left += _needs(found, wanted.extras)
    return sizes


def _needs(found: Distribution, extras: set[str]) -> Iterator[Requirement]:
    for text in found.requires or []:
        need = Requirement(text)
        if need.marker is None or any(
            need.marker.evaluate({"extra": extra}) for extra in ("", *extras)
        ):
            yield need


def _bytes(found: Distribution) -> int:
    """Size of a distribution's files, compiled ones left out: they are made where it runs."""
    total = 0
    for file in found.files or []:
        path = Path(str(file.locate()))
        if path.suffix != ".pyc" and path.is_file():
            total += path.stat().st_size
    return total
