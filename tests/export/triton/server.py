"""What a Triton server does with a model repository, with onnxruntime in the place of backends.

Configurations are parsed with NVIDIA's own schema. The rules are those of the server's core and
of its onnxruntime backend (ValidateEnsembleConfig, ReshapeTensorDims, CompareDimsSupported and
the dynamic batcher, which joins requests of equal shapes in the order in which they came).
"""

import importlib.util
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from google.protobuf import text_format

Arrays = dict[str, np.ndarray]
NUMPY = {
    "TYPE_FP32": np.float32, "TYPE_FP16": np.float16, "TYPE_INT64": np.int64,
    "TYPE_INT32": np.int32, "TYPE_UINT8": np.uint8, "TYPE_BOOL": np.bool_,
}  # fmt: skip


class RefusedError(Exception):
    """What the server would answer with an error."""


def load_module(file: Path) -> Any:
    """A module out of its package."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def schema() -> Any:
    """NVIDIA's schema, out of the client's wheel, whose package would ask for gRPC."""
    package = importlib.util.find_spec("tritonclient")
    assert package is not None and package.origin is not None
    return load_module(Path(package.origin).parent / "grpc/model_config_pb2.py")


@dataclass
class Given:
    """A tensor between two steps, and the batch of the model that made it (0: it has none)."""

    array: np.ndarray
    batch: int = 0


class Server:
    """A loaded repository."""

    def __init__(self, folder: Path) -> None:
        self.configs: dict[str, Any] = {}
        self.sessions: dict[str, ort.InferenceSession] = {}
        self.runs: dict[str, list[int]] = defaultdict(list)
        for model in sorted(folder.iterdir()):
            text = (model / "config.pbtxt").read_text()
            config = text_format.Parse(text, schema().ModelConfig())
            assert config.name == model.name
            assert [f.name for f in model.iterdir() if f.is_dir()] == ["1"]
            self.configs[model.name] = config
            if config.platform == "ensemble":
                assert not list((model / "1").iterdir())
            elif config.backend != "python":
                names = {"onnxruntime_onnx": "model.onnx", "tensorrt_plan": "model.plan"}
                file = model / "1" / names[config.platform]
                options = ort.SessionOptions()
                options.intra_op_num_threads = 2
                self.sessions[model.name] = ort.InferenceSession(file, options)
                self._check_model(model.name)
        for name, config in self.configs.items():
            if config.platform == "ensemble":
                self._check_ensemble(name)

    def infer(self, name: str, *requests: Mapping[str, np.ndarray]) -> list[Arrays]:
        """Answer requests that come at the same time."""
        config = self.configs[name]
        if config.platform != "ensemble":
            answers = self._infer(name, [{k: Given(v) for k, v in r.items()} for r in requests])
            return [{k: given.array for k, given in answer.items()} for answer in answers]
        for request in requests:
            self._check_request(config, request)
        tensors = [{k: Given(v) for k, v in request.items()} for request in requests]
        waiting = list(config.ensemble_scheduling.step)
        while waiting:
            ready = [s for s in waiting if set(s.input_map.values()) <= set(tensors[0])]
            if not ready:
                raise RefusedError(f"{[s.model_name for s in waiting]} never get their inputs")
            step = ready[0]
            waiting.remove(step)
            feeds = [{k: t[v] for k, v in step.input_map.items()} for t in tensors]
            for tensor, answer in zip(tensors, self._infer(step.model_name, feeds), strict=True):
                tensor |= {v: answer[k] for k, v in step.output_map.items()}
        return [{o.name: t[o.name].array for o in config.output} for t in tensors]

    def _infer(self, name: str, requests: Sequence[Mapping[str, Given]]) -> list[dict[str, Given]]:
        config = self.configs[name]
        dims = {tensor.name: list(tensor.dims) for tensor in config.input}
        batching = config.max_batch_size > 0
        given = [{k: _between(dims[k], batching, v) for k, v in r.items()} for r in requests]
        for arrays in given:
            self._check_request(config, arrays)
        answers: list[dict[str, Given]] = [{} for _ in given]
        for group in self._groups(config, given):
            feeds = {k: np.concatenate([given[i][k] for i in group]) for k in given[group[0]]}
            if not batching:
                feeds = dict(given[group[0]])
            rows = len(next(iter(feeds.values()))) if batching else 0
            self.runs[name].append(rows)
            names = [output.name for output in config.output]
            outputs = dict(zip(names, self.sessions[name].run(names, feeds), strict=True))
            start = 0
            for i in group:
                own = len(next(iter(given[i].values()))) if batching else 0
                for output in config.output:
                    array = outputs[output.name]
                    array = array[start : start + own] if batching else array
                    answers[i][output.name] = Given(_reshaped(array, output, batching), own)
                start += own
        return answers

    def _groups(self, config: Any, given: Sequence[Arrays]) -> list[list[int]]:
        """Which requests run together: equal shapes, in order, as many as fit."""
        if not config.HasField("dynamic_batching"):
            return [[i] for i in range(len(given))]
        groups: list[list[int]] = []
        for i, arrays in enumerate(given):
            alike = groups and all(
                arrays[k].shape[1:] == given[groups[-1][0]][k].shape[1:] for k in arrays
            )
            rows = sum(len(next(iter(given[j].values()))) for j in [*(groups[-1:] or [[]])[0], i])
            if alike and rows <= config.max_batch_size:
                groups[-1].append(i)
            else:
                groups.append([i])
        return groups

    def _check_request(self, config: Any, arrays: Mapping[str, np.ndarray]) -> None:
        wanted = {tensor.name: tensor for tensor in config.input}
        if set(arrays) != set(wanted):
            raise RefusedError(f"{config.name} takes {sorted(wanted)}, not {sorted(arrays)}")
        batches = set()
        for name, array in arrays.items():
            shape = list(array.shape)
            if config.max_batch_size > 0:
                batches.add(shape.pop(0))
            if not _compatible(list(wanted[name].dims), shape):
                raise RefusedError(
                    f"{config.name} {name}: {array.shape} is not {wanted[name].dims}"
                )
            kind = schema().DataType.Name(wanted[name].data_type)
            if array.dtype != NUMPY[kind]:
                raise RefusedError(f"{config.name} {name}: {array.dtype} is not {kind}")
        if len(batches) > 1 or any(b > config.max_batch_size for b in batches):
            raise RefusedError(f"{config.name}: batch {batches}, at most {config.max_batch_size}")

    def _check_model(self, name: str) -> None:
        """What the backend compares when it loads a model."""
        config, session = self.configs[name], self.sessions[name]
        sides = (config.input, session.get_inputs()), (config.output, session.get_outputs())
        for mine, theirs in sides:
            found = {tensor.name: tensor for tensor in theirs}
            assert sorted(t.name for t in mine) == sorted(found), name
            for tensor in mine:
                inside = list(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)
                full = [-1, *inside] if config.max_batch_size > 0 else inside
                real = [n if isinstance(n, int) else -1 for n in found[tensor.name].shape]
                assert tensor.dims, (name, tensor.name)
                assert len(real) == len(full), (name, tensor.name, real, full)
                assert all(n in (-1, m) for n, m in zip(real, full, strict=True)), (name, real)
                assert config.max_batch_size == 0 or real[0] == -1, (name, tensor.name)
                dtype = np.dtype(NUMPY[schema().DataType.Name(tensor.data_type)]).name
                kind = {"float32": "float"}.get(dtype, dtype)
                assert found[tensor.name].type == f"tensor({kind})"
        assert config.max_batch_size > 0 or not config.HasField("dynamic_batching")

    def _check_ensemble(self, name: str) -> None:
        """What the core compares when it loads an ensemble."""
        config = self.configs[name]
        known: dict[str, tuple[int, list[int], list[int]]] = {}

        def agree(tensor: str, kind: int, dims: list[int], batching: bool) -> None:
            full = [-1, *dims] if batching else dims
            have = known.setdefault(tensor, (kind, dims, full))
            assert have[0] == kind, tensor
            assert _compatible(have[1], dims) or _compatible(have[2], full), (tensor, have, dims)

        for tensor in (*config.input, *config.output):
            assert not tensor.HasField("reshape")
            agree(tensor.name, tensor.data_type, list(tensor.dims), config.max_batch_size > 0)
        made, used = {tensor.name for tensor in config.input}, set()
        for step in config.ensemble_scheduling.step:
            model = self.configs[step.model_name]
            assert model.max_batch_size == 0 or model.max_batch_size >= config.max_batch_size
            assert set(step.input_map) == {tensor.name for tensor in model.input}
            assert set(step.output_map) <= {tensor.name for tensor in model.output}
            for tensor in (*model.input, *model.output):
                mapped = step.input_map if tensor in model.input else step.output_map
                batching = model.max_batch_size > 0
                agree(mapped[tensor.name], tensor.data_type, list(tensor.dims), batching)
            assert not made & set(step.output_map.values())
            made |= set(step.output_map.values())
            used |= set(step.input_map.values())
        assert {tensor.name for tensor in config.input} <= used
        assert {tensor.name for tensor in config.output} <= made


def _compatible(dims: Sequence[int], other: Sequence[int]) -> bool:
    return len(dims) == len(other) and all(
        -1 in (a, b) or a == b for a, b in zip(dims, other, strict=True)
    )


def _between(dims: list[int], batching: bool, given: Given) -> np.ndarray:
    """Bring a tensor of a model with a batch to one without, or the other way round."""
    if batching and not given.batch and _compatible(dims, given.array.shape):
        return given.array[None]
    if not batching and given.batch == 1 and not _compatible(dims, given.array.shape):
        return given.array[0]
    return given.array


def _reshaped(array: np.ndarray, output: Any, batching: bool) -> np.ndarray:
    if not output.HasField("reshape"):
        return array
    own = list(array.shape[1 if batching else 0 :])
    free = [n for n, inside in zip(own, output.reshape.shape, strict=True) if inside == -1]
    shape = [free.pop(0) if n == -1 else n for n in output.dims]
    return array.reshape([len(array), *shape] if batching else shape)
