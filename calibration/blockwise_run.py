"""Runs graphs block by block: all samples through one block, then the next block's weights."""

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rism.calibration.graph_blocks import Stage, split_at_blocks
from rism.calibration.open_graph import OpenGraph
from rism.calibration.ort_sessions import open_session, widened
from rism.runtime.engines.base import Arrays
from rism.runtime.errors import ProviderError, one_line

Array: TypeAlias = npt.NDArray[Any]
OnTap: TypeAlias = Callable[[str, Array], None]
OnStep: TypeAlias = Callable[[int, int], None]

_SMALL_BYTES = 2**16


class Spool:
    """A store of arrays by name and sample: large ones in a folder, small ones in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stored: dict[tuple[int, str], Array | Path] = {}
        self._files = 0

    def put(self, sample: int, name: str, array: Array) -> None:
        """Store an array."""
        stored: Array | Path = array
        if array.nbytes > _SMALL_BYTES:
            stored = self._folder / f"{self._files}.npy"
            self._files += 1
            np.save(stored, array, allow_pickle=False)
        self._stored[sample, name] = stored

    def get(self, sample: int, name: str) -> Array:
        """Return a stored array."""
        stored = self._stored[sample, name]
        return np.load(stored, allow_pickle=False) if isinstance(stored, Path) else stored

    def drop(self, sample: int, name: str) -> None:
        """Delete an array, if it is stored."""
        stored = self._stored.pop((sample, name), None)
        if isinstance(stored, Path):
            stored.unlink()


class LoadedGraph:
    """A small graph of a bundle, loaded once and whole: an `Engine`.

    The graph's bfloat16 is replaced by float32 in place; for the threads see `open_session`.
    """

    provider = "cpu"

    def __init__(self, graph: OpenGraph, *, threads: int | None = None) -> None:
        self._spec = graph.spec
        self._session = open_session(
            widened(graph.model), graph.folder, threads=threads, keep_weights=True
        )

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Run it once: arrays by the logical names of docs/bundle.md, in and out."""
        arrays = {
            tensor.name: _as_declared(feeds[logical], tensor.dtype)
            for logical, tensor in self._spec.inputs.items()
        }
        names = [tensor.name for tensor in self._spec.outputs.values()]
        made = _run(self._session, names, arrays)
        return {logical: made[tensor.name] for logical, tensor in self._spec.outputs.items()}


class StreamedGraph:
    """A graph that is run with one block in memory at a time; otherwise as `LoadedGraph`."""

    provider = "cpu"

    def __init__(self, graph: OpenGraph, *, threads: int | None = None) -> None:
        self._graph, self._threads = graph, threads
        self._model = widened(graph.model)

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Run it once: arrays by the logical names of docs/bundle.md, in and out."""
        found: list[Arrays] = []
        self.run_all(lambda _sample: feeds, 1, on_result=lambda _sample, own: found.append(own))
        return found[0]

    def run_all(
        self,
        feeds: Callable[[int], Mapping[str, Array]],
        count: int,
        *,
        tapped: Collection[str] = (),
        on_tap: OnTap | None = None,
        on_step: OnStep | None = None,
        on_result: Callable[[int, Arrays], None] | None = None,
    ) -> None:
        """Run it on every sample.

        Args:
            feeds: returns a sample's arrays by logical name; called in every stage that needs it.
            count: number of samples.
            tapped: names of inner values of the graph.
            on_tap: called with the name and the array of a tapped value, for each sample.
            on_step: called with the steps done and their total.
            on_result: called with each sample's number and its outputs by logical name.

        Raises:
            ProviderError: onnxruntime failed.
        """
        stages = split_at_blocks(self._model, tapped)
        results = {} if on_result is None else self._graph.spec.outputs
        outputs = {tensor.name for tensor in results.values()}
        with tempfile.TemporaryDirectory(prefix="rism-") as folder:
            spool = Spool(Path(folder))
            for at, stage in enumerate(stages):
                session = open_session(stage.model, self._graph.folder, threads=self._threads)
                given = self._inputs(stage)
                for sample in range(count):
                    own = feeds(sample) if given else {}
                    arrays = {
                        name: _as_declared(own[given[name][0]], given[name][1])
                        if name in given
                        else spool.get(sample, name)
                        for name in stage.inputs
                    }
                    made = _run(session, stage.outputs, arrays)
                    del arrays
                    for name in stage.outputs:
                        if name in tapped and on_tap is not None:
                            on_tap(name, made[name])
                        if name in stage.passed or name in outputs:
                            spool.put(sample, name, made[name])
                    for name in {*stage.done} - outputs:
                        spool.drop(sample, name)
                    if on_step is not None:
                        on_step(at * count + sample + 1, len(stages) * count)
                del session, made  # so that two blocks are never in memory
            if on_result is not None:
                for sample in range(count):
                    found = {key: spool.get(sample, each.name) for key, each in results.items()}
                    on_result(sample, found)

    def _inputs(self, stage: Stage) -> dict[str, tuple[str, str]]:
        """Return the inputs of the whole graph that a stage takes: logical name, dtype by name."""
        return {
            tensor.name: (logical, tensor.dtype)
            for logical, tensor in self._graph.spec.inputs.items()
            if tensor.name in stage.inputs
        }


def _as_declared(array: Array, dtype: str) -> Array:
    return np.ascontiguousarray(array, dtype=np.dtype(dtype))


def _run(session: Any, names: Sequence[str], arrays: Mapping[str, Array]) -> Arrays:
    try:
        made = session.run(list(names), arrays)
    except Exception as error:  # onnxruntime's exceptions share no base
        raise ProviderError(
            f"onnxruntime failed ({one_line(error, limit=200)}): use fewer or smaller images "
            "if memory ran out"
        ) from None
    return dict(zip(names, made, strict=True))
