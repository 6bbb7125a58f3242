"""What the training loop trains: the functions of a task over a common state.

    params                 = task.init(key)
    opt_state, task_state  = task.start(params)
    means, said            = task.gradient(state, batch, indices, batch_size)    for any part of a batch
    state                  = task.update(state, means, said)                     for the whole batch, in its order

Steps, checkpoints, averages, what is done about numbers that are not finite, accumulation, devices and processes are
the loop's, and the same for every task. Its share: a gradient must depend on the examples, on their indices in the
batch and on state.step alone, draws included; then a step is the same on any number of devices.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
import optax

from ddpm_jax.config.run import NonFinite
from ddpm_jax.train import ema, state
from ddpm_jax.train.state import Params, TrainState


class Means(NamedTuple):
    """Over the examples of a batch, or of a part of one: the loss, what else a log shows, the gradient of the loss."""

    loss: jax.Array
    parts: dict[str, jax.Array]
    grads: Params


class Start(NamedTuple):
    """What a task's state has beside parameters, before step 0.

    What grows with the network belongs to opt_state, which a mesh divides as it divides parameters: several optimizers
    are one, `optax.partition`. task_state is whole on every device.
    """

    opt_state: optax.OptState
    task_state: Any = ()


class Task(Protocol):
    """Pure functions; a batch is a mapping of arrays [b, ...], one for each feature of a record that the task reads."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The features of a record that a batch must have."""
        ...

    def init(self, key: jax.Array) -> Params:
        """Parameters before step 0; traceable, so that jax.eval_shape gives their shapes without memory."""
        ...

    def start(self, params: Params) -> Start:
        """What else the state before step 0 has; traceable."""
        ...

    def gradient(
        self, state: TrainState, batch: Mapping[str, jax.Array], indices: jax.Array, batch_size: int
    ) -> tuple[Means, Any]:
        """The means over some examples, and arrays [b, ...] that `update` is told of every one.

        Args:
          state: before the step.
          batch: arrays [b, ...].
          indices: [b] uint32, of the examples in the batch.
          batch_size: of the whole batch.
        """
        ...

    def update(self, state: TrainState, means: Means, said: Any) -> TrainState:
        """The state with new params, opt_state and task_state; the loop sees to the rest of it.

        The step's metrics are the means, not the update's: so they are known before it, and it can be left out.

        Args:
          state: before the step.
          means: over the whole batch.
          said: of all its examples, in their order; the same on every device.
        """
        ...

    def pictures(self, params: Params, key: jax.Array) -> np.ndarray | None:
        """What shows how far training is, uint8 [N, H, W, C], from parameters on one device; None if nothing does."""
        ...

    def described(self, num_parameters: int) -> str:
        """What is trained, in one line, for whoever starts a run."""
        ...


@runtime_checkable
class Evaluates(Protocol):
    """What a task may have beside: numbers that say how good its average is."""

    def evaluate(self, params: Params) -> dict[str, float]:
        """Numbers by name, the same in every process; all call it, with the average on one of their devices."""
        ...


@runtime_checkable
class Given(Protocol):
    """What a task may have beside: networks that it is given, ready trained."""

    @property
    def networks(self) -> dict[str, str]:
        """Their weights' checksums, by what they are: a run goes on with the same only."""
        ...

    def keep(self, workdir: Path) -> None:
        """Write what the run's directory must have of them, before the first step and in the first process."""
        ...


@runtime_checkable
class Finishes(Protocol):
    """What a task may have beside: something to leave in the run's directory when it is trained."""

    def finish(self, params: Params, workdir: Path) -> None:
        """After the last step, in the first process, and again where a run that is trained is started again.

        Args:
          params: their average, on one device.
          workdir: of the run; what is written there takes the place of what a call before wrote.
        """
        ...


def init(task: Task, key: jax.Array, averages: ema.Averages = ema.NONE, non_finite: NonFinite = "stop") -> TrainState:
    """The state before step 0; traceable, so that jax.eval_shape gives its shapes without memory."""
    return start(task, task.init(key), averages, non_finite)


def start(task: Task, params: Params, averages: ema.Averages = ema.NONE, non_finite: NonFinite = "stop") -> TrainState:
    """The state before step 0 with these parameters; averages of parameters begin as copies."""
    return state.start(params, *task.start(params), averages=averages, non_finite=non_finite)
