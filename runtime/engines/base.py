"""Engines: each runs one graph, which takes named arrays and returns named arrays."""

from collections.abc import Callable, Mapping
from threading import Lock
from typing import Protocol, TypeAlias

from rism.runtime.arrays import Array

Arrays: TypeAlias = dict[str, Array]


class Engine(Protocol):
    """One graph, ready to run."""

    @property
    def provider(self) -> str:
        """What it runs on, such as "cpu" or "cuda:0"."""

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Run the graph: arrays by the logical names of docs/bundle.md, in and out."""


# What an engine will run on, and what loads it.
Load: TypeAlias = "tuple[str, Callable[[], Engine]]"


class LazyEngine:
    """An engine that is loaded at its first run: once, however many threads ask.

    Where loading fails, the run fails, and the next one tries again.
    """

    def __init__(self, load: Callable[[], Engine], *, provider: str) -> None:
        self._load = load
        self.provider = provider
        self._engine: Engine | None = None
        self._lock = Lock()

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Run the graph, loading it before if need be."""
        return self.loaded().run(feeds)

    def loaded(self) -> Engine:
        """Return the engine itself; loading it before if need be."""
        with self._lock:
            if self._engine is None:
                self._engine = self._load()
        return self._engine
