"""What published sizes take of a GPU's memory, by arithmetic alone: `rism plan` on empty files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness.rows import Row, Task, of_value
from benchmarks.synthetic.checkpoints import write_model
from rism.export.model_memory import model_forms
from rism.runtime.engines.memory import least_of_each_kind


def measure(task: Task) -> Iterator[Row]:
    """Give the least memory of each precision and kind of residency, and which cards suffice."""
    with tempfile.TemporaryDirectory() as place:
        for name in task["models"]:
            checkpoint = Path(place) / name
            write_model(checkpoint, name, seed=None)
            for form in model_forms(str(checkpoint)):
                parts = {part.key: [part.weights, part.activation] for part in form.parts}
                for kind, (peak, moved) in least_of_each_kind(form.parts, base=form.base).items():
                    fits = [
                        size for size in task["cards_gb"] if peak <= size * 1e9 * task["usable"]
                    ]
                    yield of_value(
                        f"{form.name}, {kind}", peak, unit="bytes", group=name,
                        moved=moved, least_card_gb=min(fits, default=None), parts=parts,
                    )  # fmt: skip
