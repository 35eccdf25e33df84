"""What TensorRT and TensorRT for RTX build for, and the form of graph that each takes.

Everything that differs between the two is here. A library, a GPU or a precision that cannot be
served is refused before a build, by an error that names it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import onnx_ir as ir

from rism.runtime.distribution import install_hint
from rism.runtime.engines.nvidia_driver import find_driver
from rism.runtime.errors import InputError, ProviderError, one_line

_FLOAT32, _FLOAT16, _BFLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
# The oldest compute capability whose tensor cores have a type.
_NEEDS = {"bf16": (8, 0), "fp8": (8, 9), "nvfp4a16": (10, 0), "nvfp4": (10, 0)}
_JETSON = {
    "7.2": "Jetson Xavier",
    "8.7": "Jetson Orin",
    "10.1": "Jetson Thor",
    "11.0": "Jetson Thor",
}
# On Turing, TensorRT for RTX has no products in float32, and every graph of ours has some.
_TURING = "7.5"
_DATA_CENTRE = {"9.0": "Hopper", "10.0": "data-centre Blackwell", "10.3": "data-centre Blackwell"}


@dataclass(frozen=True)
class BuildTarget:
    """A library that engines are built for.

    Attributes:
        name: as in `--target`.
        module: its Python module.
        compute_capabilities: of the GPUs that it can build for on any machine; empty if it builds
            only for the GPU of this machine.
    """

    name: str
    module: str
    compute_capabilities: tuple[str, ...]


TARGETS = {
    "tensorrt-rtx": BuildTarget(
        "tensorrt-rtx", "tensorrt_rtx", ("8.0", "8.6", "8.9", "12.0", "12.1")
    ),
    "tensorrt": BuildTarget("tensorrt", "tensorrt", ()),
}


@dataclass(frozen=True)
class Form:
    """The form of graph that a library takes.

    Attributes:
        target: name of the library's target.
        since: the first version of the library that takes it.
        fused: element types of queries for which ONNX's `Attention` (opset 23) is kept, since the
            library has fused kernels for heads of up to `widest` channels. Other attentions become
            MatMul, Softmax, MatMul.
        widest: the most channels of a head in a fused kernel.
        opset: the newest opset of which its parser reads every operator that we use.
    """

    target: str
    since: tuple[int, ...]
    fused: tuple[ir.DataType, ...]
    widest: int
    opset: int


# TensorRT for RTX 1.7 has no kernel for float32, whose narrow attentions crash it, nor for the head
# of 512 in the VAE. TensorRT reads Attention since 10.14 [maker's notes]; JetPack 6 has 10.3, and
# JetPack 7.2 has 10.16. Of the rows that fit a library, the last one counts.
FORMS = (
    Form("tensorrt-rtx", (1,), (_FLOAT16, _BFLOAT16), 256, 23),
    Form("tensorrt", (0,), (), 0, 20),
    Form("tensorrt", (10, 14), (_FLOAT16, _BFLOAT16), 256, 23),
)


def form_for(target: str, library: str) -> Form:
    """Find the row of `FORMS` for a version of a library.

    Args:
        target: name of the target.
        library: its version, such as "10.13.2".
    """
    numbers = tuple(int(part) for part in re.findall(r"\d+", library)[:3])
    return [row for row in FORMS if row.target == target and row.since <= numbers][-1]


def find_target(name: str) -> BuildTarget:
    """Return the target of a name.

    Raises:
        InputError: there is none.
    """
    if name not in TARGETS:
        raise InputError(f"target is '{one_line(name)}', expected {' or '.join(TARGETS)}")
    return TARGETS[name]


def installed_version(target: BuildTarget) -> str:
    """Return the version of the library that is installed.

    Raises:
        ProviderError: it is not installed.
    """
    for package in (target.module, target.name):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    jetson = "; on a Jetson it comes with JetPack" if target.name == "tensorrt" else ""
    raise ProviderError(
        f"target {target.name} needs {target.module}, which is not installed: "
        f"{install_hint(target.name)}{jetson}"
    )


def gpus_here() -> tuple[str, ...]:
    """Return the compute capabilities of this machine's GPUs; none without a driver."""
    try:
        return tuple(gpu.compute_capability for gpu in find_driver().gpus)
    except ProviderError:
        return ()


def parse_gpus(text: str) -> tuple[str, ...]:
    """Read `--gpu`, such as "sm86,sm120", as ("8.6", "12.0").

    Raises:
        InputError: an entry is no compute capability.
    """
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", part.strip(), re.ASCII | re.IGNORECASE)
        if match is None:
            raise InputError(
                f"--gpu has '{one_line(part, limit=40)}', expected compute capabilities such as "
                "sm86,sm89,sm120 (nvidia-smi --query-gpu=compute_cap --format=csv)"
            )
        found.append(f"{match[1]}.{match[2]}")
    return tuple(dict.fromkeys(found))


def check_gpus(
    target: BuildTarget, asked: Sequence[str], precision: str, here: Sequence[str]
) -> tuple[str, ...]:
    """Return the compute capabilities to build for.

    Args:
        target: the library.
        asked: compute capabilities; none for all that the library can build for in this
            precision, or for the GPU of this machine if it builds for no other.
        precision: one of `ENGINE_PRECISIONS`.
        here: compute capabilities of this machine's GPUs.

    Raises:
        InputError: the library does not serve a GPU, or a GPU has no such precision.
        ProviderError: the library needs a GPU here.
    """
    if target.compute_capabilities:
        served = [c for c in target.compute_capabilities if _can(c, precision)]
        for capability in asked:
            if capability not in target.compute_capabilities:
                raise InputError(_not_served(target, capability))
            if capability not in served:
                raise InputError(_too_old(capability, precision, served))
        return tuple(asked) or tuple(served)
    if not here:
        raise ProviderError(
            f"{target.name} builds for the GPU of the machine that it runs on, and there is none "
            "here: run rism build on the machine that is to run the engine, or use --target "
            "tensorrt-rtx for GeForce and RTX cards"
        )
    own = here[0]
    for capability in asked:
        if capability != own:
            raise InputError(
                f"{target.name} builds for the GPU of this machine ({_sm(own)}), not for "
                f"{_sm(capability)}: run rism build on a machine with that GPU"
            )
    if not _can(own, precision):
        raise InputError(_too_old(own, precision, []))
    return (own,)


def check_weights(target: BuildTarget, gpus: Sequence[str], weights: str) -> None:
    """Refuse a stripped engine for several GPUs, which TensorRT for RTX cannot build.

    Raises:
        InputError: it is one.
    """
    if weights == "stripped" and target.compute_capabilities and len(gpus) > 1:
        raise InputError(
            f"{target.name} strips an engine for one GPU at a time, and this would be for "
            f"{', '.join(_sm(each) for each in gpus)}: pass one --gpu, or use --bind-weights"
        )


def _can(capability: str, precision: str) -> bool:
    major, minor = (int(part) for part in capability.split("."))
    return (major, minor) >= _NEEDS.get(precision, (0, 0))


def _sm(capability: str) -> str:
    return "sm" + capability.replace(".", "")


def _not_served(target: BuildTarget, capability: str) -> str:
    known = _JETSON.get(capability) or _DATA_CENTRE.get(capability)
    known = "Turing, where it lacks float32" if capability == _TURING else known
    named = f"{_sm(capability)} ({known})" if known else _sm(capability)
    served = ", ".join(_sm(each) for each in target.compute_capabilities)
    if capability in _JETSON:
        way = "run rism build --target tensorrt on the Jetson, with the TensorRT of its JetPack"
    else:
        way = "run rism build --target tensorrt on a machine with that GPU"
    return f"{target.name} does not serve {named}, expected some of {served}: {way}"


def _too_old(capability: str, precision: str, served: Sequence[str]) -> str:
    major, minor = _NEEDS[precision]
    these = f" ({', '.join(_sm(each) for each in served)})" if served else ""
    return (
        f"{_sm(capability)} has no {precision}, which needs sm{major}{minor} or newer{these}: "
        "leave it out of --gpu, or build another precision for it"
    )
