"""Model configurations (config.pbtxt), by NVIDIA's schema `inference.ModelConfig`."""

from collections.abc import Iterable
from dataclasses import dataclass

from rism.export.triton.models import Chain, Model, Tensor
from rism.export.triton.pbtxt import Field, Message, Word, write
from rism.runtime.triton_backend import INPUTS, OUTPUTS

DEVICES = {"auto": "KIND_AUTO", "gpu": "KIND_GPU", "cpu": "KIND_CPU"}
_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}


@dataclass(frozen=True)
class Serving:
    """How models run.

    Attributes:
        device: "auto" lets the server choose, "gpu" and "cpu" do not.
        instances: of each model, on each device.
        queue_delay_us: how long a request may wait for others, microseconds.
    """

    device: str = "auto"
    instances: int = 1
    queue_delay_us: int = 1000


def model_config(model: Model, serving: Serving) -> str:
    """Return the configuration of one graph."""
    fields: list[tuple[str, Field]] = [
        ("name", model.name),
        ("platform", model.platform),
        ("max_batch_size", model.max_batch),
        *_tensors("input", model.inputs.values(), rows=model.max_batch > 0),
        *_tensors(
            "output",
            model.outputs.values(),
            rows=model.max_batch > 0,
            columns="none" if model.file is None else "reshaped",
        ),
    ]
    if model.max_batch > 1:
        delay: Message = [("max_queue_delay_microseconds", serving.queue_delay_us)]
        fields.append(("dynamic_batching", delay))
    kind = "cpu" if model.on_cpu else serving.device
    group: Message = [("count", serving.instances), ("kind", Word(DEVICES[kind]))]
    if kind != "auto" or serving.instances > 1:
        fields.append(("instance_group", group))
    return write(fields)


def chain_config(chain: Chain) -> str:
    """Return the configuration of an ensemble. It has no batch of its own: its models have."""
    steps: list[tuple[str, Field]] = []
    for step in chain.steps:
        maps: list[tuple[str, Field]] = [("model_name", step.model.name), ("model_version", -1)]
        for kind, names in (("input_map", step.inputs), ("output_map", step.outputs)):
            maps += [(kind, [("key", key), ("value", value)]) for key, value in names.items()]
        steps.append(("step", maps))
    return write(
        [
            ("name", chain.name),
            ("platform", "ensemble"),
            ("max_batch_size", 0),
            *_tensors("input", chain.inputs.values(), rows=False),
            *_tensors("output", chain.outputs.values(), rows=False, columns="plain"),
            ("ensemble_scheduling", steps),
        ]
    )


def segmenter_config(name: str, max_batch: int, serving: Serving) -> str:
    """Return the configuration of the model of `rism.runtime.triton_backend`."""
    fields: list[tuple[str, Field]] = [
        ("name", name),
        ("backend", "python"),
        ("max_batch_size", max_batch),
    ]
    for kind, tensors in (("input", INPUTS), ("output", OUTPUTS)):
        for tensor, (dtype, size) in tensors.items():
            word = Word("TYPE_STRING" if dtype == "BYTES" else f"TYPE_{dtype}")
            described: Message = [("name", tensor), ("data_type", word), ("dims", [size])]
            fields.append((kind, described))
    delay: Message = [("max_queue_delay_microseconds", serving.queue_delay_us)]
    group: Message = [("count", serving.instances), ("kind", Word("KIND_CPU"))]
    return write([*fields, ("dynamic_batching", delay), ("instance_group", group)])


def _tensors(
    kind: str, tensors: Iterable[Tensor], *, rows: bool, columns: str = "none"
) -> list[tuple[str, Field]]:
    """Describe inputs or outputs.

    Args:
        kind: "input" or "output".
        tensors: to describe.
        rows: the server knows of the batch: it is not listed.
        columns: what becomes of (B,), a number for each row, which a server that knows of the
            batch cannot list: "reshaped" to (B, 1), "plain" (B, 1) where models did so, or "none".
    """
    described: list[tuple[str, Field]] = []
    for tensor in tensors:
        inside = list(tensor.shape[1:] if rows else tensor.shape)
        outside = [*inside, 1] if len(tensor.shape) == 1 and columns != "none" else inside
        fields: list[tuple[str, Field]] = [
            ("name", tensor.name),
            ("data_type", Word(_TYPES[tensor.dtype])),
            ("dims", outside),
        ]
        if outside != inside and columns == "reshaped":
            shape: Message = [("shape", inside)] if inside else []
            fields.append(("reshape", shape))
        described.append((kind, fields))
    return described
