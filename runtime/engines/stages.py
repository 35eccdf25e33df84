"""Graphs that run in stages: a few blocks' weights in memory, while the next ones are loaded.

A graph is cut before its numbered blocks, at the place where the fewest values pass from one to
the next. Each stage is a session of its own on the weights that the bundle stores; it computes what
the whole graph computes, in the same order.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from rism.runtime.arrays import Array
from rism.runtime.bundle.graph_spec import GraphSpec
from rism.runtime.engines.base import Arrays
from rism.runtime.engines.malloc_trim import trim_malloc
from rism.runtime.engines.onnx_graph import OnnxGraph, OnnxNode, OnnxWeight
from rism.runtime.errors import BundleError, ProviderError, listed, one_line

# A numbered part of the model, by the names of its weights: "dit.transformer_blocks.3".
_BLOCK = re.compile(r"[\w.]*?\.\d+(?=\.)")


def block_of(name: str) -> str | None:
    """Return the numbered part that a weight belongs to, by its name."""
    match = _BLOCK.match(name)
    return None if match is None else match[0]


Size = Callable[[OnnxWeight], int]
"""Bytes that a weight takes where it runs."""


@dataclass(frozen=True)
class GraphStage:
    """One piece of a graph: a model in ONNX's form, the names of its inputs and outputs, bytes.

    `done` are the values that no later stage takes.
    """

    model: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    done: tuple[str, ...]
    nbytes: int


class _Blocks:
    """The nodes of a graph, in runs between which it can be cut."""

    def __init__(self, graph: OnnxGraph, size: Size) -> None:
        self.graph, self._size = graph, size
        # Nodes on weights alone, such as casts, run in each stage that needs them.
        self._of_weights: dict[str, OnnxNode] = {}
        self.nodes: list[OnnxNode] = []
        for node in graph.nodes:
            taken = [name for name in node.inputs if name]
            if all(name in graph.weights or name in self._of_weights for name in taken):
                self._of_weights |= dict.fromkeys(node.outputs, node)
            else:
                self.nodes.append(node)
        self._weights = [self._needed(node)[1] for node in self.nodes]
        ends = self._boundaries()
        starts = [0, *ends]
        self.runs = [range(*pair) for pair in zip(starts, [*ends, len(self.nodes)], strict=True)]

    def _needed(self, node: OnnxNode) -> tuple[dict[int, OnnxNode], set[str]]:
        """Return the nodes on weights alone that a node needs, by identity, and all weights."""
        weights: set[str] = set()
        found: dict[int, OnnxNode] = {}
        names = [*node.inputs]
        while names:
            name = names.pop()
            if name in self.graph.weights:
                weights.add(name)
            elif name in self._of_weights and id(self._of_weights[name]) not in found:
                constant = self._of_weights[name]
                found[id(constant)] = constant
                names += constant.inputs
        return found, weights

    def constants(self, run: range) -> list[OnnxNode]:
        """Return the nodes on weights alone that a run of nodes needs, in their order."""
        needed = {key for at in run for key in self._needed(self.nodes[at])[0]}
        return [node for node in self.graph.nodes if id(node) in needed]

    def nbytes(self, run: range) -> int:
        """Bytes of the weights of a run of nodes."""
        names = set[str]().union(*self._weights[run.start : run.stop])
        return sum(self._size(self.graph.weights[name]) for name in names)

    def _boundaries(self) -> list[int]:
        """Return where blocks begin, as places between nodes."""
        crossing = self._crossing()
        seen: set[str] = set()
        last, found = 0, []
        for at, names in enumerate(self._weights):
            blocks = [block for name in names if (block := block_of(name)) is not None]
            if not names:
                continue
            if blocks and not seen.issuperset(blocks):
                # After the last weight before it; of equals the last.
                if seen:
                    found.append(min(range(at, last, -1), key=lambda place: crossing[place]))
                seen.update(blocks)
            last = at
        return found

    def _crossing(self) -> list[int]:
        """Count the values that are made before each place and used behind it."""
        made: dict[str, int] = {}
        used: dict[str, int] = {}
        for at, node in enumerate(self.nodes):
            for name in node.inputs:
                if name in made:
                    used[name] = at
            made |= dict.fromkeys(node.outputs, at)
        change = [0] * (len(self.nodes) + 2)
        for name, last in used.items():
            change[made[name] + 1] += 1
            change[last + 1] -= 1
        count, counts = 0, []
        for each in change:
            count += each
            counts.append(count)
        return counts


def largest_block(graph: OnnxGraph, size: Size) -> int:
    """Return the bytes of the largest piece that a graph can be cut into."""
    blocks = _Blocks(graph, size)
    return max((blocks.nbytes(run) for run in blocks.runs), default=0)


def cut(graph: OnnxGraph, most: int, size: Size) -> list[GraphStage]:
    """Cut a graph into as few stages as hold at most so many bytes of weights each.

    Raises:
        BundleError: a value between two stages has no known type.
        ValueError: a block is larger than that.
    """
    blocks = _Blocks(graph, size)
    groups: list[range] = []
    for run in blocks.runs:
        if blocks.nbytes(run) > most:
            raise ValueError(f"a block has {blocks.nbytes(run)} bytes")
        if groups and blocks.nbytes(joined := range(groups[-1].start, run.stop)) <= most:
            groups[-1] = joined
        else:
            groups.append(run)
    return _stages(blocks, groups)


def _stages(blocks: _Blocks, groups: Sequence[range]) -> list[GraphStage]:
    graph, own = blocks.graph, [blocks.nodes[each.start : each.stop] for each in groups]
    first = {name: at for at, nodes in enumerate(own) for node in nodes for name in node.outputs}
    first |= dict.fromkeys(graph.inputs, -1)
    last = {name: at for at, nodes in enumerate(own) for node in nodes for name in node.inputs}
    last |= dict.fromkeys(graph.outputs, len(own))
    stages = []
    for at, nodes in enumerate(own):
        taken = dict.fromkeys(
            name for node in nodes for name in node.inputs if first.get(name, at) < at
        )
        given = [name for node in nodes for name in node.outputs if last.get(name, at) > at]
        run = groups[at]
        model = graph.part([*blocks.constants(run), *nodes], [*taken], given)
        done = tuple(name for name in taken if last[name] == at)
        stages.append(GraphStage(model, tuple(taken), tuple(given), done, blocks.nbytes(run)))
    return stages


class StagedEngine:
    """A graph that is run stage by stage: an `Engine`.

    While a stage runs, the next one is loaded, if `ahead`; otherwise there is one at a time.
    """

    def __init__(
        self,
        spec: GraphSpec,
        stages: Sequence[GraphStage],
        open_stage: Callable[[bytes], Any],
        *,
        provider: str,
        ahead: bool,
    ) -> None:
        """Take stages of the graph that a manifest describes, and what opens a session of one.

        Raises:
            BundleError: the graph's inputs or outputs are not the manifest's.
        """
        self.provider = provider
        self._spec, self._open = spec, open_stage
        self._stages, self._ahead = stages, ahead
        made = {name for stage in stages for name in stage.outputs}
        lacking = [each.name for each in spec.outputs.values() if each.name not in made]
        given = {each.name for each in spec.inputs.values()}
        taken = {name for stage in stages for name in stage.inputs} - made
        if lacking or taken - given:
            raise BundleError(
                f"'{spec.file}' does not have the tensors that the manifest lists "
                f"({listed([*lacking, *sorted(taken - given)])}): export the bundle again"
            )

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Run the graph: arrays by logical name, in and out; inputs are cast to declared types.

        Raises:
            ProviderError: onnxruntime failed, for lack of memory for example.
        """
        from rism.runtime.engines.onnxruntime_session import import_onnxruntime

        value = import_onnxruntime().OrtValue.ortvalue_from_numpy
        values: dict[str, Any] = {
            spec.name: value(np.ascontiguousarray(feeds[logical], dtype=np.dtype(spec.dtype)))
            for logical, spec in self._spec.inputs.items()
        }
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(self._open, self._stages[0].model)
            for at, stage in enumerate(self._stages):
                session = coming.result()
                if self._ahead and at + 1 < len(self._stages):
                    coming = pool.submit(self._open, self._stages[at + 1].model)
                self._run_stage(session, stage, values)
                del session
                trim_malloc()
                if not self._ahead and at + 1 < len(self._stages):
                    coming = pool.submit(self._open, self._stages[at + 1].model)
        return {
            logical: np.array(values[spec.name].numpy())
            for logical, spec in self._spec.outputs.items()
        }

    def _run_stage(self, session: Any, stage: GraphStage, values: dict[str, Any]) -> None:
        """Run one stage and keep what it gives; what nobody needs any more goes."""
        given = {name: values[name] for name in stage.inputs}
        try:
            # Not by a binding, whose outputs would keep the session, and so its weights.
            made = session.run_with_ort_values([*stage.outputs], given)
        except Exception as error:  # onnxruntime's exceptions share no base
            raise ProviderError(
                f"{self._spec.file} failed on {self.provider} ({one_line(error, limit=200)}): use "
                "fewer expressions at a time, a smaller image or more --memory if memory ran out"
            ) from None
        values.update(zip(stage.outputs, made, strict=True))
        for name in stage.done:
            del values[name]
