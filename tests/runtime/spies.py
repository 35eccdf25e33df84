"""Segmenters whose engines record their inputs."""

from pathlib import Path
from typing import Any

from rism.runtime import Segmenter
from rism.runtime.engines.base import Arrays, Engine


class Spy:
    """An engine that records what each run was fed."""

    provider = "spy:0"

    def __init__(self, engine: Engine) -> None:
        self.engine, self.fed = engine, list[Arrays]()

    def run(self, feeds: Any) -> Arrays:
        self.fed.append(dict(feeds))
        return self.engine.run(feeds)

    def batches(self, name: str) -> list[int]:
        """Length of an input in each run."""
        return [len(feeds[name]) for feeds in self.fed]


def spied(folder: Path, **options: Any) -> tuple[Segmenter, dict[str, Spy]]:
    own = Segmenter.from_bundle(folder, provider="cpu", threads=1)
    spies = {name: Spy(engine) for name, engine in own._engines.items()}
    return Segmenter(own.bundle, spies, capture="vectors", **options), spies
