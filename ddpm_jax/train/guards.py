"""What happens where a number of a step is not finite: it stops the run, or the step is skipped and counted.

A state that holds `Skipped` skips: `skip` is part of its step. `Watch` looks at the numbers of every step, on the host,
before anything that follows from them is written; so a state that is not finite is never saved.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.train.state import Skipped, TrainState

Metrics = dict[str, jax.Array]
SHOWN = 64
"""Examples of a batch that a message lists."""


def skip(update: Callable[[TrainState], TrainState], state: TrainState, metrics: Metrics) -> tuple[TrainState, Metrics]:
    """update(state), or where one of the metrics is not finite, the state with step + 1 and skipped + 1.

    The metrics are known before the update: it is done or not, and there is never a second state in memory.

    Args:
      update: of everything but the counts.
      state: before the step; it counts skipped steps.
      metrics: scalars: loss, grad_norm, ...

    Returns:
      The state after the step, and the metrics with the counts beside them.
    """
    finite = jnp.all(jnp.isfinite(jnp.stack(list(metrics.values()))))
    after = jax.lax.cond(finite, update, lambda state: dataclasses.replace(state, step=state.step + 1), state)
    bad = jnp.logical_not(finite).astype(jnp.int32)
    skipped = Skipped(state.skipped.total + bad, (state.skipped.in_a_row + bad) * bad)
    counts = {"skipped": skipped.total, "skipped_in_a_row": skipped.in_a_row}
    return dataclasses.replace(after, skipped=skipped), metrics | counts


class Watch:
    """The numbers of the steps since the last look, and what a user is told where they are not finite.

    Args:
      max_skipped: steps in a row that may be skipped.
      examples: the indices of the examples in the batch of step k, counted from 1.
      last_checkpoint: the step of the newest checkpoint, None if there is none.
      say: is told of skipped steps.
    """

    def __init__(
        self,
        *,
        max_skipped: int,
        examples: Callable[[int], Sequence[int] | np.ndarray],
        last_checkpoint: Callable[[], int | None],
        say: Callable[[str], None],
    ):
        self._max_skipped, self._examples = max_skipped, examples
        self._last_checkpoint, self._say = last_checkpoint, say
        self._calls: list[tuple[int, Metrics]] = []

    def add(self, step: int, metrics: Metrics) -> None:
        """Metrics of this step, [], or of the n that end with it, [n]; they are read when one looks."""
        self._calls.append((step, metrics))

    def look(self) -> dict[str, float]:
        """The numbers of the newest step, after a look at those of all since the last call.

        Raises:
          FloatingPointError: one is not finite and its step was not skipped, or too many were, one after the other.
        """
        calls, self._calls = jax.device_get(self._calls), []
        steps = [each for last, metrics in calls for each in _unstacked(last, metrics)]
        skipped = []
        for k, values in steps:
            if values.get("skipped_in_a_row", 0) > self._max_skipped:
                raise FloatingPointError(
                    f"{_not_finite(k, values)}, and {values['skipped_in_a_row']:.0f} steps in a row were skipped, more "
                    f"than train.max_skipped {self._max_skipped}; {self._where(k)}"
                )
            if wrong := _not_finite(k, values):
                if "skipped" not in values:
                    raise FloatingPointError(f"{wrong}; {self._where(k)}")
                skipped.append((k, wrong))
        if skipped:
            k, wrong = skipped[0]
            self._say(
                f"skipped {len(skipped)} of the last {len(steps)} steps: {wrong}; {self._batch(k)}"
                + ("" if len(skipped) == 1 else f"; then {', '.join(str(k) for k, _ in skipped[1:])}")
            )
        return steps[-1][1]

    def check(self, step: int, state: TrainState) -> None:
        """Look at the state itself, before it is saved: a finite gradient can still overflow it.

        Raises:
          FloatingPointError: it is not finite.
        """
        finite = jax.device_get(all_finite(state))
        wrong = [name for name in vars(state) if not finite[name]]
        if wrong:
            raise FloatingPointError(f"{', '.join(wrong)} after step {step} are not finite; {self._where(step)}")

    def _where(self, step: int) -> str:
        last = self._last_checkpoint()
        good = "there is no checkpoint before it" if last is None else f"the last checkpoint is that of step {last}"
        return f"{good}; {self._batch(step)}"

    def _batch(self, step: int) -> str:
        indices = [int(i) for i in self._examples(step)]
        more = f" (the first {SHOWN} of {len(indices)})" if len(indices) > SHOWN else ""
        return f"examples of the batch: {', '.join(map(str, indices[:SHOWN]))}{more}"


@jax.jit
def all_finite(state: TrainState) -> dict[str, jax.Array]:
    """For each part of the state whether all its floating point numbers are finite."""

    def finite(tree: Any) -> jax.Array:
        floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in floats], bool))

    return {name: finite(part) for name, part in vars(state).items()}


def _unstacked(last: int, metrics: dict[str, Any]) -> list[tuple[int, dict[str, float]]]:
    """[(step, its numbers), ...] of one call of the step."""
    columns = {name: np.atleast_1d(values) for name, values in metrics.items()}
    number = len(next(iter(columns.values())))
    return [
        (last - number + 1 + i, {name: float(column[i]) for name, column in columns.items()}) for i in range(number)
    ]


def _not_finite(step: int, values: dict[str, float]) -> str | None:
    """The first number that is not, or None."""
    wrong = [f"{name} of step {step} is {value}" for name, value in values.items() if not math.isfinite(value)]
    return wrong[0] if wrong else None
