"""A learned table as JSON: its numbers, the noise levels it visits, and all that it was made with.

A file holds levels (time, alpha, sigma), so it says by itself for which noise schedules it is: those that have these
alpha and sigma at these times. `retimed` moves it to the same noise levels of another schedule.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.config.fields import Section, structure
from ddpm_jax.distil.family import times_of
from ddpm_jax.host.storage import make_directory, write_atomically
from ddpm_jax.samplers import Row, Table
from ddpm_jax.schedules import Schedule
from ddpm_jax.trained import Trained

FORMAT = "ddpm-jax learned sampler, version 1"
TOLERANCE = 1e-2  # of log(sigma / alpha): far above rounding, far below the difference of two schedules


@dataclass(frozen=True)
class Call(Section):
    """X <- x_0[0] x_0 of the first call + ... + x_0[k] x_0 of this one + eps times the eps of this one."""

    time: float
    alpha: float
    sigma: float
    x_0: tuple[float, ...]
    eps: float

    def __post_init__(self):
        super().__post_init__()
        for name in ("alpha", "sigma"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in (0, 1), got {getattr(self, name)}")
        if abs(self.alpha**2 + self.sigma**2 - 1) > 1e-4:
            raise ValueError(f"alpha^2 + sigma^2 must be 1, got alpha {self.alpha} and sigma {self.sigma}")


@dataclass(frozen=True)
class Learned:
    """What a file says: `calls` are the sampler; `made` is how it was made, which nothing depends on."""

    calls: tuple[Call, ...]
    made: dict[str, Any]

    def __post_init__(self) -> None:
        for k, call in enumerate(self.calls):
            if len(call.x_0) != k + 1:
                raise ValueError(
                    f"calls[{k}].x_0 must have {k + 1} numbers, one for each call so far, got {len(call.x_0)}"
                )
            if k and not call.time < (before := self.calls[k - 1].time):
                raise ValueError(f"calls[{k}].time must be below {before}, that of the call before, got {call.time}")

    def table(self) -> Table:
        """The table in float64: registers X and x_0 of all calls but the last."""
        n = len(self.calls)
        update = np.tile(np.eye(n, n + 3), (n, 1, 1))
        for k, call in enumerate(self.calls):
            update[k, 0] = 0
            update[k, 0, 1 : k + 1] = call.x_0[:-1]
            update[k, 0, n], update[k, 0, n + 1] = call.x_0[-1], call.eps
            if k < n - 1:
                update[k, k + 1] = np.eye(1, n + 3, n)[0]
        time, alpha, sigma = np.array([(call.time, call.alpha, call.sigma) for call in self.calls]).T
        return Table(Row(time, alpha, sigma, np.zeros(n), np.zeros(n), update), np.float64(1))


def from_table(table: Table, made: dict[str, Any]) -> Learned:
    """Of a table of `family.table_of`."""
    rows, n, calls = table.rows, table.num_calls, []
    for k in range(n):
        *earlier, own, eps = np.asarray(rows.update)[k, 0, [*range(1, k + 1), n, n + 1]].tolist()
        time, alpha, sigma = (float(np.asarray(leaf)[k]) for leaf in (rows.time, rows.alpha, rows.sigma))
        calls.append(Call(time, alpha, sigma, (*earlier, own), eps))
    return Learned(tuple(calls), made)


def is_file(sampler: str) -> bool:
    """Whether the name of a sampler is that of a file."""
    return sampler.endswith(".json")


def save(path: Path, learned: Learned) -> None:
    """Write a new file.

    Raises:
      FileExistsError: there is one.
    """
    refuse_existing(path)
    make_directory(path.parent)
    content = {"format": FORMAT, "calls": [dataclasses.asdict(call) for call in learned.calls], "made": learned.made}
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def refuse_existing(path: Path) -> None:
    """Raises FileExistsError where there is a file."""
    if path.exists():
        raise FileExistsError(f"{path} exists: choose another --name, or delete it")


def load(path: Path) -> Learned:
    """Read a file.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not one of these; says what is wrong.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no learned sampler {path}")
    try:
        return _learned(json.loads(path.read_text()))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None


def _learned(content: Any) -> Learned:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"not a learned sampler: format must be {FORMAT!r}, got {found!r}")
    if set(content) != {"format", "calls", "made"}:
        raise ValueError(f"must have format, calls and made, got {', '.join(content)}")
    if not isinstance(content["made"], dict):
        raise ValueError(f"made must be a mapping, got {content['made']!r}")
    if not isinstance(content["calls"], list) or not content["calls"]:
        raise ValueError(f"calls must be a list of at least one, got {content['calls']!r}")
    calls = tuple(structure(call, Call, f"calls[{k}]") for k, call in enumerate(content["calls"]))
    return Learned(calls, content["made"])


# --------------------------------------------------------------------------------------------------------- schedules


def check_schedule(learned: Learned, schedule: Schedule) -> None:
    """Whether the schedule has the noise levels of the table at its times.

    Raises:
      ValueError: it has others; says at which time.
    """
    known = times_of(schedule)
    for call in learned.calls:
        log_ratio = float(np.log(call.sigma / call.alpha))
        inside = known.times[0] <= call.time <= known.times[-1]
        here = float(np.interp(call.time, known.times, known.log_ratios))
        if not inside or abs(here - log_ratio) > TOLERANCE:
            there = f"log(sigma / alpha) {here:.3f}" if inside else "no such time"
            raise ValueError(
                f"this sampler was learned for another noise schedule: at time {call.time:.2f} it has "
                f"log(sigma / alpha) {log_ratio:.3f}, the network's schedule {there}; "
                "learn one on this network"
            )


def other_network(learned: Learned, trained: Trained) -> str | None:
    """What a file says of the network that it was learned on, where that is another one than this; None: the same.

    A file from before the weights were noted tells by origin and prediction.
    """
    said = learned.made.get("network")
    if not isinstance(said, dict):
        return "the file does not say which"
    here = {"weights": trained.weights, "prediction": trained.prediction, "origin": trained.origin}
    telling = ["weights"] if "weights" in said else ["prediction", "origin"]
    if all(said.get(name) == here[name] for name in telling):
        return None
    return "; ".join(f"{name} {said.get(name)!r}, here {now!r}" for name, now in here.items() if said.get(name) != now)


def retimed(learned: Learned, schedule: Schedule) -> Learned:
    """The same noise levels and numbers, at the times that another schedule has them.

    Raises:
      ValueError: a noise level that it does not have.
    """
    known, calls = times_of(schedule), []
    for call in learned.calls:
        log_ratio = float(np.log(call.sigma / call.alpha))
        if not known.log_ratios[0] - TOLERANCE <= log_ratio <= known.log_ratios[-1] + TOLERANCE:
            raise ValueError(
                f"log(sigma / alpha) of the network's schedule lies in [{known.log_ratios[0]:.3f}, "
                f"{known.log_ratios[-1]:.3f}], and this sampler calls it at {log_ratio:.3f}: it cannot be transferred"
            )
        time = float(np.interp(log_ratio, known.log_ratios, known.times))
        calls.append(dataclasses.replace(call, time=time))
    return Learned(tuple(calls), learned.made)
