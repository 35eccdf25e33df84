"""Running a plan of TensorRT or TensorRT for RTX.

The order of calls is the library's: runtime, engine, (weights), context, shapes, addresses, run.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rism.runtime.bundle.engine_spec import EngineVariant, PlanSpec, ShapeRange
from rism.runtime.bundle.graph_spec import GraphSpec, TensorSpec, same_shape
from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines.bound_weights import BoundWeight, OnDevice, read_bound_weights, upload
from rism.runtime.engines.cuda_device import Device, DeviceArray
from rism.runtime.engines.device_engine import DeviceEngine, held
from rism.runtime.engines.kernel_cache import RuntimeCache
from rism.runtime.engines.tensorrt_library import Library, ReadPlan, read_plan
from rism.runtime.errors import (
    BundleError,
    InputError,
    ProviderError,
    RismWarning,
    listed,
    one_line,
)

# What the library calls the types of weights.
WEIGHT_TYPES = {
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float8_e4m3fn": "fp8",
    "int64": "int64",
    "int32": "int32",
    "bool": "bool",
}


@dataclass(frozen=True)
class _Bound:
    """Arrays whose addresses a context has, kept alive for as long as it may use them."""

    inputs: Mapping[str, DeviceArray]
    outputs: Mapping[str, DeviceArray]
    scratch: DeviceArray | None


class TensorRtEngine(DeviceEngine):
    """One graph of an engine variant, its tensors checked against the manifest."""

    def __init__(
        self,
        bundle: Bundle,
        variant: EngineVariant,
        graph: str,
        *,
        library: Library,
        device: Device,
        rebuild: str,
        cache: RuntimeCache | None = None,
        weights_bytes: int | None = None,
    ) -> None:
        """Load the plan of one of the variant's graphs, with the library of its target.

        `rebuild` is the command that builds the variant anew, for messages; TensorRT for RTX keeps
        compiled kernels in `cache`. Of a variant that is streamed, at most `weights_bytes` of the
        weights are on the GPU; None for all of them.

        Raises:
            BundleError: the plan is not whole, or not what the manifest says.
            ProviderError: the library cannot run it here.
        """
        self._spec: GraphSpec = bundle.manifest.graphs[graph]
        self._plan: PlanSpec = variant.graphs[graph]
        self.device = device
        self._trt = library.module
        self._rtx = library.target == "tensorrt-rtx"
        self.provider = f"{library.target}:{device.number}"
        self._label, self._rebuild = f"engine '{variant.name}' of graph '{graph}'", rebuild
        self._ranges = {
            logical: self._plan.shapes.get(logical) or _only(tensor)
            for logical, tensor in self._spec.inputs.items()
        }
        self._static = all(each.min == each.max for each in self._ranges.values())
        plan = bundle.read(self._plan.file)
        weights = {}
        if self._plan.weights is not None:
            weights = read_bound_weights(bundle, self._plan.weights)
        with device.lock, device.current():
            self._read = read_plan(library, plan, label=self._label, rebuild=rebuild)
            self._check_tensors(weights)
            if self._plan.refit is not None:
                self._refit(str(bundle.file(self._plan.refit)))
            if variant.streamed:
                self._keep_on_gpu(weights_bytes)
            self._context = self._create_context(cache)
            # Held for as long as the context may read them.
            self._weights = self._upload(bundle, weights)
        self._cache = cache  # which the context uses as long as it lives
        # Of a plan of one shape: its arrays, and what queues a run on them.
        self._kept: _Bound | None = None
        self._launch: Callable[[], None] | None = None

    def run_on_device(
        self, feeds: Mapping[str, Any], *, borrow: bool = False
    ) -> dict[str, DeviceArray]:
        """Queue a run, see `DeviceEngine`.

        Raises:
            InputError: a shape outside of those that the plan was built for.
            ProviderError: the library failed, for lack of memory for example.
        """
        shapes = {logical: tuple(feeds[logical].shape) for logical in self._spec.inputs}
        self._check_shapes(shapes)
        with held(self.device):
            self._read.logger.lines.clear()
            outputs = self._replay(feeds, borrow) if self._static else self._once(feeds, shapes)
            if self._cache is not None:
                self._cache.ran(tuple(shapes.values()))
            return outputs

    def _once(
        self, feeds: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, DeviceArray]:
        bound = self._bind(shapes)
        self._fill(bound, feeds)
        self._queue()
        return dict(bound.outputs)

    def _replay(self, feeds: Mapping[str, Any], borrow: bool) -> dict[str, DeviceArray]:
        """Run on the same arrays each time, from the second time on as one CUDA graph."""
        if self._kept is None:
            self._kept = self._bind({logical: each.opt for logical, each in self._ranges.items()})
        self._fill(self._kept, feeds)
        if self._launch is not None:
            self._launch()
        else:
            # What a first run sets up cannot be captured. TensorRT for RTX captures by itself.
            self._queue()
            self._launch = self._queue if self._rtx else self._capture()
        if borrow:
            return dict(self._kept.outputs)
        results = {}
        for logical, array in self._kept.outputs.items():
            spec = self._spec.outputs[logical]
            results[logical] = self.device.empty(tuple(array.shape), spec.dtype)
            self.device.copy(array, into=results[logical])
        return results

    def _bind(self, shapes: Mapping[str, tuple[int, ...]]) -> _Bound:
        """Tell the context of shapes, and of arrays of these shapes."""
        context, inputs, outputs = self._context, {}, {}
        for logical, shape in shapes.items():
            spec = self._spec.inputs[logical]
            inputs[logical] = self.device.empty(shape, spec.dtype)
            if not context.set_input_shape(spec.name, shape):
                raise self._failure(f"refuses '{logical}' of shape {list(shape)}")
            self._address(spec.name, inputs[logical])
        missing = context.infer_shapes()
        if missing:
            raise self._failure(f"needs the shapes of {listed(missing)}")
        for logical, spec in self._spec.outputs.items():
            shape = tuple(context.get_tensor_shape(spec.name))
            if any(size < 0 for size in shape):
                raise self._failure(f"does not know the shape of '{logical}'")
            outputs[logical] = self.device.empty(shape, spec.dtype)
            self._address(spec.name, outputs[logical])
        return _Bound(inputs, outputs, self._give_scratch())

    def _address(self, name: str, array: DeviceArray) -> None:
        if not self._context.set_tensor_address(name, self.device.pointer(array)):
            raise self._failure(f"refuses the memory of '{one_line(name, limit=80)}'")

    def _give_scratch(self) -> DeviceArray | None:
        # For these shapes: at the profile's largest it can be ten times as much.
        size = self._context.update_device_memory_size_for_shapes()
        if not size:
            if self._read.engine.device_memory_size_v2:  # 0 is its word for an error, too
                raise self._failure("does not say how much memory these shapes take")
            return None
        scratch = self.device.scratch(size)
        self._context.set_device_memory(self.device.pointer(scratch), int(scratch.nbytes))
        return scratch

    def _fill(self, bound: _Bound, feeds: Mapping[str, Any]) -> None:
        for logical, array in bound.inputs.items():
            self.device.copy(feeds[logical], into=array)

    def _queue(self) -> None:
        if not self._context.execute_async_v3(self.device.stream):
            raise self._failure("failed")

    def _capture(self) -> Callable[[], None]:
        """Return what launches the plan as one CUDA graph, or else what queues it anew."""
        try:
            return self.device.capture(self._queue)
        except ProviderError as error:
            text = f"{self._label} runs without a CUDA graph, which may be slower: {error}"
            warnings.warn(text, RismWarning, stacklevel=2)
            return self._queue

    def _failure(self, what: str) -> ProviderError:
        said = one_line(" | ".join(self._read.logger.lines) or "it does not say why", limit=200)
        return ProviderError(
            f"{self._label} {what} on {self.provider} ({said}): use fewer expressions at a time "
            f"or a smaller image if memory ran out, or {self._rebuild}"
        )

    def _create_context(self, cache: RuntimeCache | None) -> Any:
        engine, strategy = self._read.engine, self._trt.ExecutionContextAllocationStrategy
        how: Any = strategy.USER_MANAGED
        if self._rtx:
            how = engine.create_runtime_config()
            # Kernels of a new shape are compiled before its first run goes on. By default that is
            # done behind runs on other kernels, and nothing tells when it is over: runs would
            # differ in speed and in last bits, and `rism doctor` test what is not used later.
            how.dynamic_shapes_kernel_specialization_strategy = (
                self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            if cache is not None:
                cache.attach(how, label=self._label)
            how.set_execution_context_allocation_strategy(strategy.USER_MANAGED)
            graphs = getattr(self._trt, "CudaGraphStrategy", None)  # not in its first versions
            if self._static and graphs is not None:
                how.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE
        context = engine.create_execution_context(how)
        if context is None:
            raise self._failure("gives no context")
        return context

    def _upload(self, bundle: Bundle, weights: Mapping[str, BoundWeight]) -> Mapping[str, OnDevice]:
        try:
            there = upload(bundle, weights, self.device)
        except MemoryError:  # CuPy's OutOfMemoryError is one
            size = sum({(w.file, w.offset): w.length for w in weights.values()}.values())
            raise ProviderError(
                f"{self._label} found too little memory on {self.provider} for its weights, "
                f"{size / 1e9:.1f} GB: see nvidia-smi, use a GPU with more, or an engine of fewer "
                "bytes (rism build --precision fp8)"
            ) from None
        for name, weight in there.items():
            self._address(name, weight.array)
        return there

    def _keep_on_gpu(self, most: int | None) -> None:
        """Say how many bytes of the weights may be on the GPU; the rest is read in each run."""
        engine = self._read.engine
        every = engine.streamable_weights_size
        kept = every if most is None else max(0, most - engine.weight_streaming_scratch_memory_size)
        engine.weight_streaming_budget_v2 = min(kept, every)
        if engine.weight_streaming_budget_v2 != min(kept, every):
            raise self._failure(f"does not keep {min(kept, every)} bytes of its weights")

    def _refit(self, onnx_file: str) -> None:
        """Give a stripped plan the bundle's weights, which it was built with."""
        read: ReadPlan = self._read
        refitter = self._trt.Refitter(read.engine, read.logger)
        parser = self._trt.OnnxParserRefitter(refitter, read.logger)
        if not (parser.refit_from_file(onnx_file) and refitter.refit_cuda_engine()):
            raise self._failure("does not take the bundle's weights")

    def _check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for logical, shape in shapes.items():
            each = self._ranges[logical]
            if not each.holds(shape):
                built = f"{list(each.min)} to {list(each.max)}"
                raise InputError(
                    f"'{logical}' is of shape {list(shape)}, {self._label} takes "
                    f"{list(each.min) if each.min == each.max else built}: "
                    f"{self._rebuild} --shapes with larger ones, or use --provider onnxruntime-cuda"
                )

    def _check_tensors(self, weights: Mapping[str, BoundWeight]) -> None:
        """Refuse a plan whose tensors are not those of the manifest, and its weights."""
        engine, trt = self._read.engine, self._trt
        names = [engine.get_tensor_name(at) for at in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        for kind, mode, specs in (
            ("input", trt.TensorIOMode.INPUT, self._spec.inputs),
            ("output", trt.TensorIOMode.OUTPUT, self._spec.outputs),
        ):
            found = [name for name in names if modes[name] == mode]
            declared = [spec.name for spec in specs.values()]
            if kind == "input":
                declared += weights
            # There may be hundreds of weights: the message names only what differs.
            lacking = [name for name in declared if name not in found or declared.count(name) > 1]
            # More outputs than those of the manifest do no harm.
            more = [name for name in found if name not in declared and kind == "input"]
            if lacking or more:
                by = self._plan.weights if kind == "input" else None
                raise self._lie(f"has {kind}s {listed(more)}", listed(lacking), by=by)
            for logical, spec in specs.items():
                self._check_tensor(logical, spec)
        for name, weight in weights.items():
            self._check_weight(name, weight)
        for logical, each in self._plan.shapes.items():
            name = self._spec.inputs[logical].name
            built = [tuple(shape) for shape in engine.get_tensor_profile_shape(name, 0)]
            # Of an input of one shape a library may have nothing to say.
            if any(built) and built != [each.min, each.opt, each.max]:
                raise self._lie(
                    f"takes '{logical}' of shapes {one_line(built, limit=80)}",
                    one_line([each.min, each.opt, each.max], limit=80),
                )

    def _check_tensor(self, logical: str, spec: TensorSpec) -> None:
        engine, trt = self._read.engine, self._trt
        dtype = engine.get_tensor_dtype(spec.name)
        if dtype != getattr(trt, spec.dtype):
            raise self._lie(f"has '{logical}' of {one_line(dtype, limit=40)}", spec.dtype)
        shape = [size if size >= 0 else "any" for size in engine.get_tensor_shape(spec.name)]
        if not same_shape(spec.shape, shape):
            raise self._lie(f"has '{logical}' of shape {shape}", one_line(list(spec.shape)))
        if engine.get_tensor_location(spec.name) != trt.TensorLocation.DEVICE:
            raise self._lie(f"wants '{logical}' in host memory", "device memory")

    def _check_weight(self, name: str, weight: BoundWeight) -> None:
        """Refuse a weight of another type or size: a plan would read past its end."""
        dtype = self._read.engine.get_tensor_dtype(name)
        shape = tuple(self._read.engine.get_tensor_shape(name))
        if dtype != getattr(self._trt, WEIGHT_TYPES[weight.dtype]) or shape != weight.shape:
            raise self._lie(
                f"takes the weight '{one_line(name, limit=80)}' as {one_line(dtype, limit=40)} "
                f"{list(shape)}",
                f"{weight.dtype} {list(weight.shape)}",
                by=self._plan.weights,
            )

    def _lie(self, found: str, expected: str, *, by: str | None = None) -> BundleError:
        return BundleError(
            f"{self._label} {found}, expected {expected} by {by or 'the manifest'}: {self._rebuild}"
        )


def _only(tensor: TensorSpec) -> ShapeRange:
    shape = tuple(size for size in tensor.shape if isinstance(size, int))
    return ShapeRange(shape, shape, shape)
