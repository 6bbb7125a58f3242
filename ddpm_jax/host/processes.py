"""Several processes as one run: how they find each other, and what only the first of them does.

The processes, their exchange and the signs that they live are JAX's (`jax.distributed`). Without `start`, or with one
process, everything here is what a single program does.
"""

import contextlib
import glob
import importlib.util
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

# A process from which nothing was heard for so long is lost, and the others end with a message that has its number.
HEARTBEAT_SECONDS = 30

ERRORS: dict[str, type[Exception]] = {"ValueError": ValueError, "OSError": OSError}

T = TypeVar("T")


def start(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Join the other processes of this run; to be called before JAX looks for devices.

    Without arguments: on a TPU slice and in a Slurm step of several tasks JAX finds the others by itself, everywhere
    else this is the only process. `num_processes=1` means so too, whatever the machine says.

    Args:
      coordinator: HOST:PORT of process 0, as all processes reach it.
      num_processes: of all.
      process_id: of this one, from 0.

    Raises:
      ValueError: some of the arguments but not all, or an id that is none.
      TimeoutError: the others did not come.
    """
    given = (coordinator, num_processes, process_id)
    if given in ((None, None, None), (None, 1, None)):
        if num_processes is None and _is_one_of_several():
            _join()
        return
    if coordinator is None or num_processes is None or process_id is None:
        raise ValueError(
            "--coordinator, --num-processes and --process-id go together, "
            f"got {coordinator}, {num_processes} and {process_id}"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"--coordinator must be HOST:PORT with a port from 1 to 65535, got {coordinator!r}")
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"--process-id must be at least 0 and below --num-processes, got {process_id} of {num_processes}"
        )
    _join(coordinator, num_processes, process_id)


def _join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # what processes without accelerators talk with
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=3600,  # at the end of a run the others wait for the first one's pictures
        )
    except jax.errors.JaxRuntimeError as error:
        raise TimeoutError(f"the other processes did not come to {coordinator or 'the coordinator'}: {error}") from None
    # Devices that exchange something for the first time have 30 seconds to find each other under gloo. Here all
    # processes are side by side; at the first training step one may still be compiling.
    from_first(lambda: None)
    number = np.zeros(jax.local_device_count(), np.float32)
    jax.block_until_ready(jax.pmap(lambda x: jax.lax.psum(x, "all"), "all", devices=all_devices())(number))


def all_devices() -> list[jax.Device]:
    """The devices of all processes, those of a process side by side."""
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def _is_one_of_several() -> bool:
    """Whether JAX's own detection is to be asked: it fails, rather than says no, where there is nothing to detect."""
    in_slurm = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    has_tpu = bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
    return in_slurm or (has_tpu and importlib.util.find_spec("libtpu") is not None)


def description() -> str:
    """Who this process is, for its log: others are lost by their number."""
    n = jax.process_count()
    return "" if n == 1 else f" (process {jax.process_index()} of {n}, on {socket.gethostname()})"


def leave(status: int) -> NoReturn:
    """End this process after an error.

    One of several does not wait for the others, as it would to leave in order: they wait for it. What is not said is
    heard, and they end after HEARTBEAT_SECONDS.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def is_first() -> bool:
    """Whether this process is the one that writes logs and pictures."""
    return jax.process_index() == 0


def from_first(function: Callable[[], T]) -> T:
    """What function() returns in the first process, in every process; so with a ValueError or OSError that it raises.

    All processes must call it. What is returned must be JSON.
    """
    if jax.process_count() == 1:
        return function()
    answer = {}
    if is_first():
        try:
            answer = {"value": function()}
        except (ValueError, OSError) as error:
            kind = "ValueError" if isinstance(error, ValueError) else "OSError"
            answer = {"error": kind, "message": str(error)}
    answer = json.loads(_broadcast(json.dumps(answer).encode()))
    if "error" in answer:
        raise ERRORS[answer["error"]](answer["message"])
    return answer["value"]


def first_before_others(function: Callable[[], T]) -> T:
    """function() in the first process, then in the others, which find what it left on a disk they share."""
    found = []
    from_first(lambda: found.append(function()))
    return found[0] if found else function()


def _broadcast(text: bytes) -> bytes:
    """The first process's bytes."""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    mine = np.zeros(-(-size // 256) * 256, np.uint8)  # few sizes: each is compiled once
    if is_first():
        mine[:size] = np.frombuffer(text, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(mine)).tobytes()[:size]


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[int], bool]]:
    """asked(k): whether to save and stop after step k, because SIGTERM came; all processes must ask about every step.

    With several processes JAX's own service hears the signal in any of them, and finds a step that all can still reach.
    Python hears signals in its main thread only: elsewhere, one process is ended by SIGTERM as any program is.
    """
    heard = threading.Event()
    listens = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda *_: heard.set()) if listens else None
    try:
        yield lambda k: heard.is_set() or multihost_utils.reached_preemption_sync_point(k)
    finally:
        if listens:
            signal.signal(signal.SIGTERM, before)
