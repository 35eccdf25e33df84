"""`rism plan`: what a bundle or a model takes of memory, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rism.cli.console import Console, UsageError, write_stdout
from rism.cli.flags import CommandFlags, argument, memory_option, option
from rism.runtime.distribution import needs_extra

if TYPE_CHECKING:
    from rism.runtime.diagnostics.memory_plan import MemoryForm


@dataclass(frozen=True, kw_only=True)
class PlanFlags(CommandFlags):
    """The flags of `rism plan`."""

    what: str = argument(
        ...,
        metavar="BUNDLE|MODEL",
        help="A bundle (see rism run --bundle), or a checkpoint as rism export --model takes it.",
    )
    gpu_memory: str | None = memory_option(
        metavar="SIZE", help="What a GPU has, such as 8GiB; says what fits."
    )
    memory: str | None = memory_option(
        metavar="SIZE", help="What the process may take on a CPU, such as 8GiB; says what fits."
    )
    offline: bool = option(False, help="Use only files that are already on this machine.")


def plan(flags: PlanFlags, console: Console) -> None:
    """Say what each form of a model takes of memory: all loaded, in turn, or in stages."""
    from rism.runtime.diagnostics.memory_plan import memory_table
    from rism.runtime.engines.memory import AUTO, TURNS, free_memory, parse_memory
    from rism.runtime.errors import InputError

    if flags.gpu_memory in (AUTO, TURNS):
        raise UsageError(
            f"--gpu-memory {flags.gpu_memory} is for rism run, expected a size such as 8GiB"
        )
    if flags.memory == TURNS:
        raise UsageError("--memory turns is for rism run, expected a size such as 8GiB, or auto")
    memory = None
    if flags.memory is not None:
        memory = parse_memory(flags.memory) or free_memory()
        if memory is None:
            raise InputError("this system does not say what is free, expected a size such as 8GiB")
    gpu = None if flags.gpu_memory is None else parse_memory(flags.gpu_memory)
    console.status(f"reading {flags.what} ...")
    forms = _forms(flags)
    console.clear()
    write_stdout(f"{memory_table(forms, gpu_memory=gpu, memory=memory)}\n")


def _forms(flags: PlanFlags) -> list[MemoryForm]:
    from rism.runtime.bundle.reader import BUILT_IN, Bundle, resolve_bundle
    from rism.runtime.diagnostics.memory_plan import bundle_forms

    if flags.what == BUILT_IN or (Path(flags.what) / "manifest.json").is_file():
        return [*bundle_forms(Bundle.open(resolve_bundle(flags.what), verify=False))]
    if find_spec("torch") is None:
        raise UsageError(
            f"'{flags.what}' is not a bundle's folder, and a checkpoint's plan needs PyTorch: rism "
            "export --dry-run says what files and headers tell without it"
        )
    with needs_extra("plan", "export"):
        from rism.export.model_memory import model_forms
    return [*model_forms(flags.what, offline=flags.offline)]
