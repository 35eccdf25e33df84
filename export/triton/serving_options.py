"""What a model repository can be asked to be, and what was written."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from rism.export.triton.config import DEVICES, Serving
from rism.export.triton.models import Chain, Model
from rism.runtime.errors import InputError, one_line

_MAX_BATCH = 256
_PREFIX = re.compile(r"[a-z0-9_-]{0,40}", re.ASCII)


@dataclass(frozen=True)
class TritonOptions:
    """What to write.

    Attributes:
        capture: the transformer's capture mode; None for "scores" where the bundle has it, else
            its default.
        engine: name of a variant of the bundle's engines, whose plans are served in the place of
            its graphs; None for none.
        serving: how the models run.
        max_batch: rows of a batch that the server may join.
        tau: region threshold of capture "scores"; None for the bundle's.
        prefix: of every model's name, for servers of several bundles.
        link: weights and plans are hard links to the bundle's files rather than copies.
        segmenter: also a model that takes images and expressions (rism.runtime.triton_backend).
    """

    capture: str | None = None
    engine: str | None = None
    serving: Serving = field(default_factory=Serving)
    max_batch: int = 8
    tau: float | None = None
    prefix: str = ""
    link: bool = False
    segmenter: bool = False

    def check(self) -> None:
        """Refuse what is out of range.

        Raises:
            InputError: An option cannot be used.
        """
        if self.serving.device not in DEVICES:
            raise InputError(
                f"device is '{one_line(self.serving.device)}', expected {', '.join(DEVICES)}"
            )
        for name, value, least, most in (
            ("max batch", self.max_batch, 1, _MAX_BATCH),
            ("number of instances", self.serving.instances, 1, 64),
            ("queue delay", self.serving.queue_delay_us, 0, 10_000_000),
        ):
            if not least <= value <= most:
                raise InputError(f"{name} is {value}, expected {least} to {most}")
        if self.tau is not None and not 0.0 <= self.tau < 1.0:
            raise InputError(f"tau is {self.tau}, expected a number from 0 to below 1, such as 0.8")
        if _PREFIX.fullmatch(self.prefix) is None:
            raise InputError(
                f"prefix is '{one_line(self.prefix, limit=60)}', expected up to 40 of a-z, 0-9, _ "
                "and -, such as klein_"
            )


@dataclass(frozen=True)
class TritonReport:
    """What was written.

    Attributes:
        path: the repository.
        chains: its ensembles.
        models: their models.
        segmenter: name of the model that takes images and expressions, or None.
        copied_bytes: of weights and plans; 0 where they are links.
    """

    path: Path
    chains: tuple[Chain, ...]
    models: tuple[Model, ...]
    segmenter: str | None
    copied_bytes: int

    def table(self) -> str:
        """One line per model: what runs it, and the rows it takes of several requests."""
        rows = [f"{'model':<36} {'runs on':<18} rows joined over requests"]
        for model in self.models:
            batch = f"up to {model.max_batch}" if model.max_batch > 1 else "none"
            rows.append(f"{model.name:<36} {model.platform:<18} {batch}")
        rows += [f"{chain.name:<36} ensemble" for chain in self.chains]
        if self.segmenter is not None:
            rows.append(f"{self.segmenter:<36} python, with rism installed there")
        return "\n".join(rows)
