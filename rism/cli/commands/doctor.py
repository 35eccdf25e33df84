"""`rism doctor`: what this machine has, what a bundle needs, and whether the numbers are right."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from rism.cli.console import Console, UsageError, write_stdout
from rism.cli.flags import BUNDLE_HELP, EngineFlags, argument, option
from rism.runtime.distribution import install_hint
from rism.runtime.errors import InputError, ProviderError, RismError, one_line

if TYPE_CHECKING:
    from rism.runtime.bundle.reader import Bundle
    from rism.runtime.diagnostics.environment import ProviderProbe
    from rism.runtime.diagnostics.selftest import Comparison, Loads
    from rism.runtime.engines.nvidia_driver import Driver
    from rism.runtime.engines.selection import EngineRequest


@dataclass(frozen=True, kw_only=True)
class DoctorFlags(EngineFlags):
    """The flags of `rism doctor`."""

    bundle: str | None = argument(None, metavar="BUNDLE", help=BUNDLE_HELP)
    record: bool = option(
        False, help="Store what PROVIDER computes as the test vectors to compare with."
    )
    as_json: bool = option(False, "--json", help="Print JSON.")


@dataclass
class _Trial:
    """One provider, or one engine, on the stored vectors."""

    name: str
    problem: str | None = None
    # It should have run: nothing is missing, or it was asked for.
    failed: bool = False
    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.problem is None and all(each.passed for each in self.comparisons)

    @property
    def worst(self) -> Comparison | None:
        """The comparison that is nearest to its limit, or furthest beyond it."""
        worst = [each for each in self.comparisons if not each.passed] or self.comparisons
        return max(worst, key=lambda each: each.error / each.limit, default=None)


def doctor(flags: DoctorFlags, console: Console) -> None:
    """Report what can run here, and compare what every engine computes with stored results."""
    from rism.runtime.bundle.reader import Bundle, resolve_bundle
    from rism.runtime.bundle.update import expect_own_bundle, mend_bundle
    from rism.runtime.diagnostics import selftest
    from rism.runtime.diagnostics.environment import probe, the_driver
    from rism.runtime.engines.memory import gib
    from rism.runtime.engines.providers import PROVIDERS, parse_provider
    from rism.runtime.engines.selection import EngineRequest

    if flags.record:
        expect_own_bundle(resolve_bundle(flags.bundle))
    names = parse_provider(flags.provider)
    if len(names) > 1:
        raise InputError(f"provider is '{flags.provider}', expected one at a time for the test")
    asked = None if names == ("auto",) else names[0]
    if asked == "onnxruntime-cpu" and flags.device:
        raise UsageError(f"--device {flags.device} is a GPU, the CPU has no number: leave it out")
    driver = the_driver()
    probes = [probe(each, device=flags.device) for each in PROVIDERS.values()]
    if not flags.as_json:
        write_stdout("\n".join([*_environment(driver), *_providers(probes)]) + "\n")
    # An unusable bundle ends the command here, with its reader's message.
    folder = resolve_bundle(flags.bundle)
    if mend_bundle(folder) and not flags.as_json:
        write_stdout("mended       an interrupted change of the bundle\n")
    bundle = Bundle.open(folder, verify=True)
    request = EngineRequest(
        asked or "onnxruntime-cpu", flags.device, flags.threads, engine=flags.engine
    )
    if flags.record:
        console.status("recording ...")
        made_by = selftest.record(folder, request)
        console.clear()
        bundle = Bundle.open(folder, verify=False)
        if not flags.as_json:
            write_stdout(f"recorded     vectors of {len(_test(bundle))} graphs by {made_by}\n")
    trials = list(_trials(bundle, probes, asked, request, console)) if _test(bundle) else []
    if flags.as_json:
        write_stdout(
            json.dumps(_record(driver, probes, bundle, trials, flags.device), indent=2) + "\n"
        )
    else:
        memory = (
            f"memory       {each['form']} on a {each['on']}: {each['fits']}, "
            f"{'the GPU has' if each['on'] == 'GPU' else 'free are'} {gib(each['bytes'])}"
            for each in _memory(bundle, driver, flags.device)
        )
        lines = [*_bundle(bundle, flags.device), *memory, *_verdicts(bundle, trials)]
        write_stdout("\n".join(lines) + "\n")
    _judge(probes, asked, trials)


def _judge(probes: list[ProviderProbe], asked: str | None, trials: list[_Trial]) -> None:
    """Raise for what should work and does not."""
    failed = [t for t in trials if not t.ok and (t.failed or t.comparisons)]
    if failed:
        raise RismError(f"self-test failed: {'; '.join(t.problem or _failure(t) for t in failed)}")
    lacking = [p for p in probes if p.provider == asked and not p.ready]
    if lacking:
        raise ProviderError(lacking[0].text)
    if not any(p.ready for p in probes):
        raise ProviderError(f"no provider can start here: {install_hint('cpu')}")
    if trials and not any(t.ok for t in trials):
        raise ProviderError(f"nothing here can run this bundle: {trials[-1].problem}")


def _trials(
    bundle: Bundle,
    probes: list[ProviderProbe],
    asked: str | None,
    request: EngineRequest,
    console: Console,
) -> Iterator[_Trial]:
    """Run the self-test with each engine and each provider that can start, or the named one."""
    from rism.runtime.diagnostics.selftest import onnx_loads
    from rism.runtime.engines.providers import PROVIDERS
    from rism.runtime.engines.selection import EngineRequest, variant_loads

    def engine_loads(name: str) -> Loads:
        return variant_loads(bundle, EngineRequest(device=request.device, engine=name))[0]

    ready = {each.provider for each in probes if each.ready}
    for variant in bundle.manifest.engines:
        named = request.engine == variant.name
        if named or (request.engine is None and asked in (None, variant.target)):
            trial = _Trial(f"engine '{variant.name}' ({variant.target}, {variant.precision})")
            precision = variant.compute
            console.status(f"testing {trial.name} ...")
            _try(trial, partial(engine_loads, variant.name), bundle, precision, named)
            yield trial
    if request.engine is not None:
        return
    for name, provider in PROVIDERS.items():
        if not provider.built and name in ready and asked in (None, name):
            compute = bundle.manifest.precision.on(gpu=provider.backend.gpu)
            trial = _Trial(name)
            console.status(f"testing {name} ...")
            loads = partial(onnx_loads, bundle, name, request)
            _try(trial, loads, bundle, compute, name == asked)
            yield trial
    console.clear()


def _try(
    trial: _Trial, loads: Callable[[], Loads], bundle: Bundle, precision: str, asked: bool
) -> None:
    """Load and compare; an engine that cannot start is a failure only if it was asked for."""
    from rism.runtime.diagnostics.selftest import check

    trial.failed = asked
    try:
        found = loads()
        trial.failed = True
        trial.comparisons = check(bundle, found, precision=precision)
    except InputError as error:
        # The vectors' shapes are not among those that a plan was built for.
        trial.failed, trial.problem = asked, f"not tested: {error}"
    except RismError as error:
        trial.problem = str(error)


def _test(bundle: Bundle) -> Mapping[str, Any]:
    return {} if bundle.manifest.self_test is None else bundle.manifest.self_test.graphs


def _environment(driver: Driver | str) -> Iterator[str]:
    from rism.runtime.diagnostics.environment import packages, python_line

    yield f"python       {python_line()}"
    yield f"packages     {', '.join(f'{k} {v}' for k, v in packages().items())}"
    if isinstance(driver, str):
        yield f"driver       none: {driver}"
        return
    yield f"driver       CUDA {driver.cuda[0]}.{driver.cuda[1]}, {len(driver.gpus)} GPUs"
    for gpu in driver.gpus:
        yield (
            f"gpu          {gpu.number}: {one_line(gpu.name, limit=60)}, compute capability "
            f"{gpu.compute_capability}, {gpu.memory / 2**30:.1f} GiB"
        )


def _providers(probes: list[ProviderProbe]) -> Iterator[str]:
    for each in probes:
        yield f"provider     {each.provider}: {'ready, ' if each.ready else 'no: '}{each.text}"


def _misfit_here(bundle: Bundle, engine: str, device: int) -> str | None:
    """Say why an engine cannot run on this machine; None if it should."""
    from rism.runtime.engines.selection import EngineRequest, variant_loads

    try:
        variant_loads(bundle, EngineRequest(device=device, engine=engine))
    except RismError as error:
        return str(error)
    return None


def _bundle(bundle: Bundle, device: int) -> Iterator[str]:
    manifest = bundle.manifest
    yield (
        f"bundle       {bundle.path}: {one_line(manifest.model.name)} in "
        f"{one_line(manifest.precision.compute)}, {len(manifest.files)} files verified"
    )
    for variant in manifest.engines:
        yield (
            f"engine       {variant.name}: {one_line(variant.target)} {variant.version}, "
            f"{one_line(variant.precision)}, compute capability "
            f"{', '.join(variant.compute_capabilities)}, {len(variant.graphs)} graphs: "
            f"{_misfit_here(bundle, variant.name, device) or 'fits here'}"
        )


def _memory(bundle: Bundle, driver: Driver | str, device: int) -> Iterator[dict[str, Any]]:
    """Say what of the bundle fits this machine, by form."""
    from rism.runtime.diagnostics.memory_plan import bundle_forms
    from rism.runtime.engines.memory import free_memory

    gpus = () if isinstance(driver, str) else driver.gpus
    gpu = next((each.memory for each in gpus if each.number == device), None)
    for form in bundle_forms(bundle):
        there = gpu if form.on_gpu else free_memory()
        if there is not None:
            fits = form.fits(there)
            yield {"form": form.name, "on": form.where, "bytes": there, "fits": fits}


def _verdicts(bundle: Bundle, trials: list[_Trial]) -> Iterator[str]:
    test = bundle.manifest.self_test
    if test is None:
        yield f"self-test    none stored: rism doctor {bundle.path} --record"
        return
    yield f"self-test    {len(test.graphs)} graphs, made by {one_line(test.made_by, limit=80)}"
    for trial in trials:
        if trial.problem is not None:
            verdict = "FAILED" if trial.failed else "no"
            yield f"self-test    {trial.name}: {verdict}, {trial.problem}"
            continue
        graphs = dict.fromkeys(each.graph for each in trial.comparisons)
        for graph in graphs:
            one = _Trial(graph, comparisons=[c for c in trial.comparisons if c.graph == graph])
            worst = one.worst
            assert worst is not None, "a graph is here because of a comparison"
            verdict = "ok" if one.ok else "FAILED"
            yield f"self-test    {trial.name}: {graph} {verdict}, {_figures(worst)}"


def _figures(each: Comparison) -> str:
    return f"{each.output} off by {each.error:.2g}, at most {each.limit:g}"


def _failure(trial: _Trial) -> str:
    worst = trial.worst
    assert worst is not None, "it failed by a comparison"
    return f"{trial.name}: {worst.graph}: {_figures(worst)}"


def _record(
    driver: Driver | str,
    probes: list[ProviderProbe],
    bundle: Bundle,
    trials: list[_Trial],
    device: int,
) -> dict[str, Any]:
    from rism.runtime.diagnostics.environment import packages, python_line

    return {
        "python": python_line(),
        "packages": packages(),
        "driver": {"error": driver} if isinstance(driver, str) else asdict(driver),
        "providers": [asdict(each) for each in probes],
        "bundle": {
            "path": str(bundle.path),
            "digest": bundle.digest,
            "verified": True,
            "engines": {
                variant.name: _misfit_here(bundle, variant.name, device)
                for variant in bundle.manifest.engines
            },
        },
        "memory": [*_memory(bundle, driver, device)],
        "self_test": [
            {
                "name": trial.name,
                "ok": trial.ok,
                "problem": trial.problem,
                "comparisons": [
                    # JSON has no infinity and no NaN.
                    {**asdict(c), "error": c.error if c.error < 1e300 else None, "ok": c.passed}
                    for c in trial.comparisons
                ],
            }
            for trial in trials
        ],
    }
