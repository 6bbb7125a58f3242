"""One compiled program for every sampler: tables padded to one shape, the number of rows being data."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ddpm_jax.samplers.denoise import Denoise, Remembering, remembering
from ddpm_jax.samplers.run import check_ends, sample
from ddpm_jax.samplers.table import REGISTERS, Row, Table


def pad(table: Table, num_calls: int, num_registers: int = len(REGISTERS)) -> Table:
    """The same sampler with rows that do nothing after its own, and registers that nobody reads.

    Raises:
      ValueError: the table has more rows or registers than that.
    """
    rows, size = table.rows, table.rows.update.shape[1]
    if table.num_calls > num_calls:
        raise ValueError(f"the table has {table.num_calls} rows, more than the {num_calls} allowed")
    if size > num_registers:
        raise ValueError(f"the table needs {size} registers, more than the {num_registers} allowed")
    update = np.tile(np.eye(num_registers, num_registers + 3), (num_calls, 1, 1))
    update[: table.num_calls, :size, :size] = rows.update[:, :, :size]
    update[: table.num_calls, :size, num_registers:] = rows.update[:, :, size:]

    def column(values: np.ndarray) -> np.ndarray:
        # Any level with alpha, sigma > 0 will do: these rows keep X whatever the network says.
        return np.concatenate([values, np.full(num_calls - table.num_calls, 0.5)])

    of_x = np.zeros((num_calls, num_registers))
    if rows.of_x is not None:
        of_x[: table.num_calls, :size] = rows.of_x
    mean = np.tile([1.0, 0.0], (num_calls, 1))  # rows that do nothing must not divide by 0
    mean[: table.num_calls] = 0 if rows.mean is None else rows.mean
    numbers = (column(values) for values in rows[:5])
    longer = lambda leaf: np.concatenate([leaf, np.repeat(leaf[-1:], num_calls - table.num_calls, axis=0)])
    guidance = jax.tree.map(longer, rows.guidance)
    first = np.float64(0) if table.first is None else table.first
    return Table(Row(*numbers, update=update, of_x=of_x, mean=mean, guidance=guidance), table.init, first)


def stack(tables: Sequence[Table]) -> Table:
    """Tables of any samplers padded to the largest and stacked: [S, N, ...], for jax.vmap over samplers."""
    num_calls = max(table.num_calls for table in tables)
    num_registers = max(table.rows.update.shape[1] for table in tables)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(pad(table, num_calls, num_registers) for table in tables))


class Runner:
    """run(table, key, *data) = sample(make_denoise(*data), table, key, shape): one compilation for all tables.

    What changes from call to call is data: the table, its number of rows, the key, and whatever make_denoise takes,
    such as parameters and a guidance scale. It costs the updates of six registers at each row where most samplers
    need one or two; `sample` under jax.jit, compiled once for each number of steps, does without.

    Args:
      make_denoise: from arrays to a denoiser, traced once:
        lambda params, scale: denoiser(classifier_free(bind(model, params), ..., scale)).
      shape: [B, ...] of the result.
      max_calls: the largest number of rows a table may have.

    Example:
      >>> run = Runner(lambda c: denoiser(lambda x, t: c * x), (4, 8, 8, 1), max_calls=100)
      >>> x_0 = run(ddim(grids.leading(schedules.linear(), 50)), jax.random.key(0), jnp.float32(1))
    """

    def __init__(self, make_denoise: Callable[..., Denoise | Remembering], shape: tuple[int, ...], max_calls: int):
        self.make_denoise, self.shape, self.max_calls = make_denoise, shape, max_calls

        def run(
            table: Table, num_calls: jax.Array, key: jax.Array, first_index: jax.Array, x_t: Any, *data: Any
        ) -> jax.Array:
            denoise = make_denoise(*data)
            return sample(denoise, table, key, shape, x_t=x_t, first_index=first_index, num_calls=num_calls)

        self._run = jax.jit(run)

    def __call__(
        self, table: Table, key: jax.Array, *data: Any, first_index: int = 0, x_t: jax.Array | None = None
    ) -> jax.Array:
        """x_0 [B, ...] float32.

        Args:
          table: from a sampler, of at most max_calls rows.
          key: of the whole set of samples.
          data: for make_denoise; arrays, of the same shapes and dtypes at every call.
          first_index: the global index of the first sample.
          x_t: start as in `sample`; with it and without are two programs.

        Raises:
          ValueError: a table with too many rows; a prediction that says nothing at one of its levels.
        """
        padded = jax.tree.map(np.float32, pad(table, self.max_calls))
        made = lambda: remembering(self.make_denoise(*data))  # only where there is something to check
        once = Remembering(lambda like: made().start(like), lambda x, row, memory: made().denoise(x, row, memory))
        check_ends(once, table, jax.ShapeDtypeStruct(self.shape, np.float32))
        # np.int32, not int: a weakly typed number would be a second program. One explicit transfer for all of it.
        numbers = jax.device_put((padded, np.int32(table.num_calls), np.uint32(first_index)))
        return self._run(numbers[0], numbers[1], key, numbers[2], x_t, *data)
