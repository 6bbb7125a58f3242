"""Several processes as one run: how they find each other, and what only the first of them does.

They compute together by `jax.distributed`; how they meet, compare what they were told and hear of each other's end is
`meeting`'s. Without `start`, or with one process, everything here is what a single program does.
"""

import atexit
import contextlib
import glob
import importlib.util
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax._src import clusters  # JAX says who the processes are, by itself, only where it also makes them meet
from jax.experimental import multihost_utils

from ddpm_jax.host import meeting, ports
from ddpm_jax.host.storage import Say

START_SECONDS, FOUND_START_SECONDS = 45, 300
"""To wait for the others: typed by hand, and found by JAX, where a machine may be long in starting."""
HEARTBEAT_SECONDS = 100
"""A process that stands still, on a machine that answers, is noticed after so long, by JAX; else `meeting` does."""
LOST_SECONDS = 40
"""After an exchange has failed, until it is known who was lost."""

MOST_SAID = 4
"""Settings of a process that differ."""

ERRORS: dict[str, type[Exception]] = {"ValueError": ValueError, "OSError": OSError}

T = TypeVar("T")


_meeting: meeting.Meeting | None = None
_last_words = threading.Lock()  # of this process; who has it ends the process, and never lets go


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    wait_seconds: float | None = None,
    say: Say = lambda message: None,
) -> None:
    """Join the other processes of this run; to be called before JAX looks for devices.

    Without arguments: on a TPU slice and in a Slurm step of several tasks JAX finds the others by itself, everywhere
    else this is the only process. `num_processes=1` means so too, whatever the machine says. Afterwards, where one of
    the processes is lost or ends with an error, this one ends with a line that names it and exit status 2.

    Args:
      coordinator: HOST:PORT of process 0, as all processes reach it.
      num_processes: of all.
      process_id: of this one, from 0.
      wait_seconds: for the others; START_SECONDS by default, FOUND_START_SECONDS where JAX finds them.
      say: is told for whom this process waits.

    Raises:
      ValueError: some of the arguments but not all, or an id that is none or another process's.
      TimeoutError: the others did not come.
      OSError: the port of process 0 is not free.
    """
    given = (coordinator, num_processes, process_id)
    if wait_seconds is not None and not wait_seconds > 0:
        raise ValueError(f"--wait-seconds must be positive, got {wait_seconds:g}")
    if given in ((None, None, None), (None, 1, None)):
        if num_processes is None and _is_one_of_several():
            _join(*_found(), wait_seconds or FOUND_START_SECONDS, say)
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
    _join(coordinator, num_processes, process_id, None, wait_seconds or START_SECONDS, say)


def _found() -> tuple[str, int, int, Sequence[int] | None]:
    """Coordinator, number of processes, this one and its devices, as JAX finds them.

    Raises:
      ValueError: it does not.
    """
    find = clusters.ClusterEnv.auto_detect_unset_distributed_params
    coordinator, n, number, devices = find(None, None, None, None, None, FOUND_START_SECONDS)
    if coordinator is None or n is None or number is None:
        raise ValueError(
            "the other processes are not found: give --coordinator, --num-processes and --process-id, "
            "or --num-processes 1 where there are none"
        )
    return coordinator, n, number, devices


def _join(coordinator: str, n: int, number: int, devices: Sequence[int] | None, seconds: float, say: Say) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # what processes without accelerators talk with
    met = _meet(coordinator, n, number, seconds, say)
    try:
        jax.distributed.initialize(
            met.service,
            n,
            number,
            local_device_ids=devices,
            coordinator_bind_address=met.service,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=3600,  # at the end of a run the others wait for the first one's pictures
        )
    except jax.errors.JaxRuntimeError as error:
        raise TimeoutError(f"the processes met, but JAX's do not: {error}") from None
    if threading.current_thread() is threading.main_thread():
        # JAX took SIGTERM for a service of its own, about which Orbax asks. Asked at every step, it waits, with
        # Python's lock held, for what this process passes on in Python: see `preemption`.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    atexit.register(met.tell, None)  # before JAX waits there for the others
    # Devices that exchange something for the first time have 30 seconds to find each other under gloo. Here all
    # processes are side by side; at the first training step one may still be compiling.
    multihost_utils.broadcast_one_to_all(np.int32(0))
    ones = np.zeros(jax.local_device_count(), np.float32)
    jax.block_until_ready(jax.pmap(lambda x: jax.lax.psum(x, "all"), "all", devices=all_devices())(ones))


def _meet(coordinator: str, n: int, number: int, seconds: float, say: Say) -> meeting.Meeting:
    """This process among the others, when all have come."""
    global _meeting
    host, _, port = coordinator.rpartition(":")
    address = (host.strip("[]"), int(port))  # [::1]:1234
    other = meeting.Other(address, number, n, say, _ended)
    if number > 0:
        _meeting = other
        other.meet(seconds)
        return other
    try:
        first = meeting.First(int(port), n, say, _ended)
    except OSError as error:
        if ports.is_taken(error):
            other.meet(1)  # which says who has it, where that is another process 0
        raise OSError(f"process 0 cannot listen at --coordinator {coordinator}: {error.strerror}") from None
    _meeting = first
    first.meet(seconds)
    return first


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


def is_one_of_several() -> bool:
    """Whether `start` found others."""
    return _meeting is not None


def _ended(why: str) -> None:
    """Called by the meeting: this process ends, since another one has."""
    _end(2, why)


def _end(status: int, message: str | None) -> NoReturn:
    """The end of this process, at once, with a line that is its last."""
    _last_words.acquire()
    sys.stdout.flush()
    if message is not None:
        os.write(2, f"ddpm-jax: {message}\n".encode())
    if _meeting is not None:
        _meeting.tell(message or "stopped")
    os._exit(status)


def leave(status: int, message: str | None = None) -> NoReturn:
    """End this process after an error, with a line on stderr.

    One of several does not wait for the others, as it would to leave in order: they hear of it and end, too.
    """
    if _meeting is not None:
        _end(status, message)
    if message is not None:
        sys.stderr.write(f"ddpm-jax: {message}\n")
    sys.exit(status)


def leave_after(error: Exception) -> NoReturn:
    """End this process, one of several, after an error that is not a user's: an exchange that fails since another
    process was lost is told as that, everything else with its traceback."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        time.sleep(LOST_SECONDS)
    traceback.print_exception(error)
    _end(1, f"{type(error).__name__}: {' '.join(str(error).split())}")


def is_first() -> bool:
    """Whether this process is the one that writes logs and pictures."""
    return jax.process_index() == 0


def from_first(function: Callable[[], T]) -> T:
    """What function() returns in the first process, in every process; so with a ValueError or OSError that it raises.

    All processes must call it. What is returned must be JSON.
    """
    if _meeting is None:
        return function()
    answer = None
    if is_first():
        try:
            answer = {"value": function()}
        except (ValueError, OSError) as error:
            kind = "ValueError" if isinstance(error, ValueError) else "OSError"
            answer = {"error": kind, "message": str(error)}
    answer = next(found for found in _meeting.gather(answer) if found is not None)
    if "error" in answer:
        raise ERRORS[answer["error"]](answer["message"])
    return answer["value"]


def gathered(rows: np.ndarray, most: int) -> np.ndarray:
    """[sum of n, D], the rows [n, D] of all processes one after another; all must call it.

    Args:
      rows: of this process, n at most `most`.
      most: the same in all processes.
    """
    if jax.process_count() == 1:
        return rows
    padded = np.zeros((most, *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    counts = multihost_utils.process_allgather(np.int32(len(rows)))
    parts = multihost_utils.process_allgather(padded)
    return np.concatenate([part[:n] for part, n in zip(parts, counts, strict=True)])


def agree(values: Mapping[str, Any]) -> None:
    """Compare what the processes were told, by name; all must call it.

    Args:
      values: of JSON, which must be the same in all processes.

    Raises:
      ValueError: they are not; in every process, with the names and values of the first that differs.
    """
    if _meeting is None and jax.process_count() > 1:
        raise ValueError("several processes of one run join by ddpm_jax.host.processes.start")
    if _meeting is not None and (wrong := disagreement(_meeting.gather(dict(values)))):
        raise ValueError(wrong)


def disagreement(found: Sequence[Mapping[str, Any]]) -> str | None:
    """What the first process that differs from process 0 has otherwise, and what process 0 has; None if none does."""
    for number, theirs in enumerate(found):
        names = [name for name in {**found[0], **theirs} if _said(theirs, name) != _said(found[0], name)]
        # Other networks have settings of other names: these say less than which networks they are.
        if names := [name for name in names if name in found[0] and name in theirs] or names:
            said = [f"{name} {_said(theirs, name)} where process 0 has {_said(found[0], name)}" for name in names]
            more = f"; and {len(said) - MOST_SAID} more" if len(said) > MOST_SAID else ""
            return f"process {number} has {'; '.join(said[:MOST_SAID])}{more}: they must be the same in all processes"
    return None


def _said(values: Mapping[str, Any], name: str) -> str:
    """A value as it is typed."""
    if name not in values:
        return "nothing"
    value = values[name]
    if isinstance(value, list | tuple) and all(isinstance(part, str | int | float) for part in value):
        return " ".join(map(str, value)) or "()"
    return value if isinstance(value, str) and value else "none" if value is None else json.dumps(value)


def first_before_others(function: Callable[[], T]) -> T:
    """function() in the first process, then in the others, which find what it left on a disk they share."""
    found = []
    from_first(lambda: found.append(function()))
    return found[0] if found else function()


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[int], bool]]:
    """asked(k): whether to save and stop after step k, because SIGTERM or SIGINT, which is Ctrl-C, came; all processes
    must ask about every step.

    With several processes a signal to any of them stops all, after a step that all can still reach. Python hears
    signals in its main thread only: elsewhere, a process is ended by them as any program is. A second SIGINT is a
    KeyboardInterrupt.
    """
    heard, before = threading.Event(), dict[int, Any]()

    def interrupted(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        heard.set()

    def asked(k: int) -> bool:
        if _meeting is None:
            return heard.is_set()
        if heard.is_set():
            _meeting.ask_to_stop()
        return _meeting.last_step.is_reached(k)

    if threading.current_thread() is threading.main_thread():
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, lambda *_: heard.set())
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as in the background
            before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupted)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
