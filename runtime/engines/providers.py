"""The providers: what can run a bundle's graphs. To add one, add it to `PROVIDERS`.

Importing this module imports nothing heavy: the command line reads the names from it. What an
entry needs is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rism.runtime.errors import InputError, ProviderError, one_line
from rism.runtime.names import ENGINE_TARGETS, PRECISION_OF_TYPE

if TYPE_CHECKING:
    from rism.runtime.bundle.graph_spec import PrecisionInfo
    from rism.runtime.engines.onnxruntime import OnnxRuntime


@dataclass(frozen=True, kw_only=True)
class Provider:
    """One provider.

    Attributes:
        name: what `--provider` takes and reports show, such as "onnxruntime-cuda".
        label: a shorter name for it: `--provider` takes it too, and results call engines by it,
            such as "cuda" of "cuda:0".
        make: returns how onnxruntime runs graphs with it, given the label; None for a provider
            that runs engines built into the bundle (`rism build`).
        every_graph: whether it runs all graphs of a bundle, so that no other need follow it.
        computes: what it can compute ONNX graphs in.
        auto: whether "auto" may choose it.
    """

    name: str
    label: str
    make: Callable[[str], OnnxRuntime] | None = None
    every_graph: bool = False
    computes: tuple[str, ...] = tuple(PRECISION_OF_TYPE)
    auto: bool = True

    @property
    def built(self) -> bool:
        """Whether it runs built engines rather than ONNX graphs."""
        return self.make is None

    @property
    def backend(self) -> OnnxRuntime:
        """How onnxruntime runs graphs with it; not for built engines."""
        assert self.make is not None, f"{self.name} does not run ONNX graphs"
        return self.make(self.label)

    @property
    def package(self) -> str:
        """The distribution that brings it."""
        return self.name if self.built else self.backend.package

    def probe(self, device: int) -> str:
        """Try everything that it needs, short of a graph, and say in what versions it is there.

        Raises:
            ProviderError: something is missing, or does not fit the rest.
        """
        if not self.built:
            return self.backend.probe(device)
        from rism.runtime.engines.tensorrt_library import probe

        return probe(self.name, device)


def _cpu(label: str) -> OnnxRuntime:
    from rism.runtime.engines.onnxruntime import OnnxRuntime

    return OnnxRuntime(label)


def _cuda(label: str) -> OnnxRuntime:
    from rism.runtime.engines.onnxruntime_cuda import OnnxRuntimeCuda

    return OnnxRuntimeCuda(label)


def _rtx(label: str) -> OnnxRuntime:
    from rism.runtime.engines.rtx_plugin import OnnxRuntimeRtx

    return OnnxRuntimeRtx(label)


# Best first: "auto" tries them in this order, and `rism doctor` lists them in it.
PROVIDERS: dict[str, Provider] = {
    each.name: each
    for each in (
        *(Provider(name=target, label=target) for target in ENGINE_TARGETS),
        Provider(
            name="onnxruntime-tensorrt-rtx",
            label="rtx",
            make=_rtx,
            # Of release 1.7 in float32: its attention has no kernel, and a transformer ends the
            # process.
            computes=("float16", "bfloat16"),
        ),
        Provider(name="onnxruntime-cuda", label="cuda", make=_cuda, every_graph=True),
        Provider(
            name="onnxruntime-cpu",
            label="cpu",
            make=_cpu,
            every_graph=True,
            computes=("float32", "float16"),
        ),
    )
}


def provider_names() -> tuple[str, ...]:
    """Return what `--provider` takes: "auto", then labels, then names."""
    labels = (each.label for each in reversed(PROVIDERS.values()))
    return tuple(dict.fromkeys(["auto", *labels, *reversed(PROVIDERS)]))


def find_provider(name: str) -> Provider:
    """Return a provider by its name or label.

    Raises:
        InputError: there is none of that name.
    """
    for provider in PROVIDERS.values():
        if name in (provider.name, provider.label):
            return provider
    raise InputError(
        f"provider is '{one_line(name, limit=60)}', expected one of "
        f"{', '.join(provider_names())}, or some joined by +"
    )


def parse_provider(text: str) -> tuple[str, ...]:
    """Read what `--provider` says: one of `provider_names`, or several joined by "+".

    Each graph is run by the first of them that has it, such as "tensorrt-rtx+onnxruntime-cuda"
    where only the transformer was built.

    Returns:
        Names of `PROVIDERS`, or ("auto",).

    Raises:
        InputError: there is no such provider, one stands there twice, or "auto" is among others.
    """
    if text == "auto":
        return ("auto",)
    parts = text.split("+")
    found = [find_provider(part) for part in parts if part != "auto"]
    if len(found) < len(parts):
        raise InputError(
            f"provider is '{one_line(text, limit=80)}', expected auto by itself, or names"
        )
    names = tuple(each.name for each in found)
    # What stands after one that runs every graph would run none.
    if len(set(names)) != len(names) or any(each.every_graph for each in found[:-1]):
        last = " or ".join(each.name for each in reversed(PROVIDERS.values()) if each.every_graph)
        raise InputError(
            f"provider is '{one_line(text, limit=80)}', expected different ones joined by +, "
            f"{last} only as the last, such as tensorrt-rtx+onnxruntime-cuda"
        )
    return names


def check_provider(name: str, *, device: int = 0) -> None:
    """Refuse a provider of onnxruntime that is not installed or does not work on this machine.

    Raises:
        ProviderError: with the way to install it.
    """
    find_provider(name).backend.check(device)


def check_precision(precision: PrecisionInfo, provider: Provider, why: str) -> None:
    """Refuse what a provider cannot compute in; `why` says how the provider was chosen.

    Raises:
        ProviderError: it cannot compute in the bundle's precision.
    """
    compute = precision.on(gpu=provider.built or provider.backend.gpu)
    if compute in provider.computes:
        return
    flags = " or ".join(PRECISION_OF_TYPE[each] for each in provider.computes)
    others = [p for p in PROVIDERS.values() if p.every_graph and compute in p.computes]
    raise ProviderError(
        f"provider {provider.label} ({why}) cannot run this bundle, which computes in "
        f"{one_line(compute)}, expected {' or '.join(provider.computes)}: export with "
        f"--precision {flags}" + "".join(f", or use --provider {p.label}" for p in others[:1])
    )
