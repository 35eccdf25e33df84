"""Graphs run block by block: all samples through one block, then the next block's weights."""

from __future__ import annotations

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

__all__ = ["LoadedGraph", "Spool", "StreamedGraph"]

Array: TypeAlias = npt.NDArray[Any]
OnTap: TypeAlias = Callable[[str, Array], None]
OnStep: TypeAlias = Callable[[int, int], None]

_SMALL_BYTES = 2**16


class Spool:
    """Arrays by name and sample: large ones in a folder, small ones in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._small: dict[tuple[int, str], Array] = {}
        self._files: dict[tuple[int, str], Path] = {}
        self._made = 0

    def put(self, sample: int, name: str, array: Array) -> None:
        """Keep an array."""
        if array.nbytes <= _SMALL_BYTES:
            self._small[sample, name] = array
            return
        file = self._folder / f"{self._made}.npy"
        self._made += 1
        np.save(file, array, allow_pickle=False)
        self._files[sample, name] = file

    def get(self, sample: int, name: str) -> Array:
        """Return an array as it was put."""
        if (sample, name) in self._small:
            return self._small[sample, name]
        found: Array = np.load(self._files[sample, name], allow_pickle=False)
        return found

    def drop(self, sample: int, name: str) -> None:
        """Forget an array, if it is there."""
        self._small.pop((sample, name), None)
        file = self._files.pop((sample, name), None)
        if file is not None:
            file.unlink()


class LoadedGraph:
    """A small graph of a bundle, loaded once as a whole: an `Engine`.

    Args:
        graph: changed where the CPU could not run it.
        threads: CPU threads; None for as many as this process may use.
    """

    def __init__(self, graph: OpenGraph, *, threads: int | None = None) -> None:
        self._spec = graph.spec
        self._session = open_session(
            widened(graph.model), graph.folder, threads=threads, keep_weights=True
        )

    @property
    def provider(self) -> str:
        """What it runs on."""
        return "cpu"

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
    """A graph of a bundle in the memory of one of its blocks; also an `Engine`.

    Args:
        graph: changed where the CPU could not run it.
        threads: CPU threads; None for as many as this process may use.
        folder: for temporary files; None for the system's place.
    """

    def __init__(
        self, graph: OpenGraph, *, threads: int | None = None, folder: Path | None = None
    ) -> None:
        self._graph, self._threads, self._place = graph, threads, folder
        self._model = widened(graph.model)

    @property
    def provider(self) -> str:
        """What it runs on."""
        return "cpu"

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
            feeds: for a sample's number its arrays by logical name; asked in every stage.
            count: of samples.
            tapped: names of values in the graph to be shown.
            on_tap: is given the name and the values of one of them, in each sample.
            on_step: is told how many of how many steps are done.
            on_result: is given each sample's number, and its outputs by logical name.

        Raises:
            ProviderError: onnxruntime failed.
        """
        stages = split_at_blocks(self._model, tapped)
        spec = self._graph.spec
        asked = {} if on_result is None else spec.outputs
        outputs = {tensor.name for tensor in asked.values()}
        with tempfile.TemporaryDirectory(prefix="rism-", dir=self._place) as scratch:
            spool = Spool(Path(scratch))
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
                # Before the next one is loaded: two blocks are never in memory.
                del session, made
            for sample in range(count if on_result is not None else 0):
                assert on_result is not None
                on_result(
                    sample,
                    {logical: spool.get(sample, tensor.name) for logical, tensor in asked.items()},
                )

    def _inputs(self, stage: Stage) -> dict[str, tuple[str, str]]:
        """Inputs of the whole graph that a stage takes: logical name and dtype, by name."""
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
            f"onnxruntime failed ({one_line(error, limit=200)}): use fewer or smaller pictures "
            "if memory ran out"
        ) from None
    return dict(zip(names, made, strict=True))
