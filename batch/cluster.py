"""Ray: a cluster, or one of this process, without its dashboard, messages and statistics."""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Ray reports its use to its makers unless this is set before it is imported. A user's choice stays.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Its C++ parts print what Ray Data handles.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

import ray
import ray.data

from rism.runtime.engines.cpu_threads import cpu_count
from rism.runtime.errors import ProviderError, RismError, one_line

# Blocks between stages: a few images, so that actors are fed evenly and memory stays flat.
_BLOCK_BYTES = 16 * 2**20
# Pixels and masks between stages, for each core: decoding is far ahead of the actors otherwise.
_WAITING_BYTES = 256 * 2**20
# Share of the cores that Ray reserves for all stages, from the first one on: with its default of a
# half nothing is left for the last one, and no part is written until others have ended.
_RESERVED = 0.2
# An actor, its tasks, and Ray's own.
_PROCESSES_A_CORE = 8


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start a Ray of this process, without its dashboard and messages.

    Raises:
        ProviderError: there is no cluster at the address, or Ray stopped.
    """
    ours = not ray.is_initialized()
    if ours:
        start(address)
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = _BLOCK_BYTES
    context.op_resource_reservation_ratio = _RESERVED
    waiting = _WAITING_BYTES * int(ray.cluster_resources().get("CPU", 1))
    context.execution_options.resource_limits = ray.data.ExecutionResources(
        object_store_memory=waiting
    )
    context.enable_progress_bars = context.print_on_execution_start = False
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="ray")
            yield
    except ray.exceptions.RayError as error:
        raise _as_ours(error) from None
    finally:
        if ours:
            ray.shutdown()


def start(address: str | None) -> None:
    """Connect, or start a Ray of this process."""
    before = signal.getsignal(signal.SIGTERM)
    cores = cpu_count()
    # Ray ends idle processes beyond one a core, and starts them anew for the next tasks.
    kept = {"num_workers_soft_limit": _PROCESSES_A_CORE * cores}
    own = {"num_cpus": cores, "include_dashboard": False, "_system_config": kept}
    try:
        with _quiet_stderr():
            ray.init(
                address=address or "local",
                logging_level=logging.ERROR,
                log_to_driver=False,
                **(own if address is None else {}),
            )
    except Exception as error:  # of any kind: no such host, another version of Ray or Python
        raise ProviderError(
            f"Ray {'at ' + one_line(address) if address else 'of this machine'} does not start: "
            f"{one_line(error, limit=200)}"
        ) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray sets its own


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Silence what Ray's C++ parts print when they start, that they print nothing else."""
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _as_ours(error: Any) -> RismError:
    """Return the error of ours that a task raised, or one that tells Ray's in a line."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, RismError):
        return type(cause)(*cause.args)
    return ProviderError(
        f"the run stopped ({one_line(cause or error, limit=300)}): --resume continues it"
    )
