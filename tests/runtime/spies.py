"""Segmenters whose engines record their inputs."""

from pathlib import Path
from typing import Any

from rism.runtime import Segmenter
from rism.runtime.engines.base import Arrays, Engine


class Spy:
    """An engine that keeps what each run was fed and gave."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.provider = engine, engine.provider
        self.fed, self.gave = list[Arrays](), list[Arrays]()

    def run(self, feeds: Any) -> Arrays:
        self.fed.append(dict(feeds))
        self.gave.append(self.engine.run(feeds))
        return self.gave[-1]

    def batches(self, name: str) -> list[int]:
        """Length of an input in each run."""
        return [len(feeds[name]) for feeds in self.fed]


def spied(folder: Path, **options: Any) -> tuple[Segmenter, dict[str, Spy]]:
    own = Segmenter.from_bundle(folder, provider="cpu", threads=1)
    spies = {name: Spy(engine) for name, engine in own._engines.items()}
    return Segmenter(own.bundle, spies, capture="vectors", **options), spies
