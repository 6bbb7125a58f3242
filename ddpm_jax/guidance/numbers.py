"""The numbers of a method, as a column of a sampler's table: one of each row, or of each row and example."""

from types import ModuleType
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.guidance.method import ASKED, CLASSIFIER_SCALE, GIVEN, NOTHING, TOGETHER, Method
from ddpm_jax.names import unknown
from ddpm_jax.samplers.table import Table, guidance_of

Number = float | np.ndarray | jax.Array
Axis = Literal["time", "sigma", "log_snr", "step"]


def on(
    table: Table,
    method: Method,
    *,
    scale: Number | None = None,
    weight: Number | None = None,
    interval: np.ndarray | jax.Array | None = None,
    **numbers: Number,
) -> Table:
    """The table, its rows with the scale of guidance and the method's other numbers.

    Args:
      table: of any sampler, of N rows; the scale of a classifier that it has stays, see `on_classifier`.
      method: whose numbers they are.
      scale: one, or [N], one of each row; [N, B] or [1, B] for each example too. 1 is no guidance, as GLIDE, latent
        diffusion and diffusers count; either this or
      weight: scale - 1, as Ho and Salimans count, of shapes as scale: 0 is no guidance.
      interval: [N] bool, from `within`: other rows ask what the condition says, and nothing else.
      numbers: the method's others, of shapes as scale.

    Raises:
      ValueError: both or none of scale and weight; a name that the method does not have, or one that it needs and that
        is missing; another shape; a number outside of the method's limits, where it is not traced.
    """
    if (scale is None) == (weight is None):
        raise ValueError(f"give either scale or weight (= scale - 1), got scale={scale} and weight={weight}")
    if wrong := sorted(set(numbers) - set(method.defaults)):
        raise unknown("number of this method", wrong[0], ["scale", *method.defaults])
    scale = 1 + weight if scale is None else scale  # type: ignore[reportOptionalOperand]
    values: dict[str, Any] = {"scale": scale, **method.defaults, **numbers}
    if missing := sorted(name for name, value in values.items() if value is None):
        raise ValueError(f"this method needs {', '.join(missing)}")
    rows = {name: _by_row(name, value, table.num_calls) for name, value in values.items()}
    for name, (low, high) in method.limits.items():
        if isinstance(rows[name], np.ndarray) and not ((rows[name] >= low) & (rows[name] <= high)).all():
            raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {values[name]}")
    xp = _module(*rows.values(), interval)
    scales = rows["scale"].reshape(table.num_calls, -1)
    asks = xp.full(table.num_calls, TOGETHER)
    for at, only in ((method.given_at, GIVEN), (method.nothing_at, NOTHING)):
        if at is not None:
            asks = xp.where(xp.all(scales == at, axis=1), only, asks)
    if interval is not None:
        asks = xp.where(_checked(interval, table.num_calls), asks, GIVEN)
    if method.overruled_by is not None:
        overruled = rows[method.overruled_by].reshape(table.num_calls, -1) != 0
        asks = xp.where(xp.any(overruled, axis=1), TOGETHER, asks)
    kept = {name: value for name, value in guidance_of(table.rows).items() if name == CLASSIFIER_SCALE}
    return table._replace(rows=table.rows._replace(guidance={**rows, ASKED: asks, **kept}))


def on_classifier(table: Table, *, scale: Number, interval: np.ndarray | jax.Array | None = None) -> Table:
    """The table, its rows with the scale of a classifier's gradient: for `mean_shifted` and `score_shifted`.

    Args:
      table: of any sampler, of N rows; the numbers of a method that it has stay.
      scale: of shapes as in `on`. Rows where it is 0 do not call the classifier.
      interval: [N] bool, from `within`: in other rows the scale is 0.

    Raises:
      ValueError: another shape.
    """
    rows = _by_row("scale", scale, table.num_calls)
    if interval is not None:
        inside = _checked(interval, table.num_calls)
        rows = rows * inside.reshape(-1, *(1,) * (rows.ndim - 1)).astype(rows.dtype)
    guidance = {**guidance_of(table.rows), CLASSIFIER_SCALE: rows}
    return table._replace(rows=table.rows._replace(guidance=guidance))


def within(table: Table, low: float, high: float, axis: Axis = "time") -> np.ndarray:
    """[N] bool: low <= a < high of the level at which each row calls the network.

    Source: Kynkaanniemi et al. 2024 (arXiv:2404.07724), eq. 5, whose interval is in sigma.

    Args:
      table: of any sampler.
      low, high: the interval; "step" includes low and excludes high, the others include both ends.
      axis: "time", what the network is told; "sigma", sigma / alpha, the noise on x_0; "log_snr",
        2 log(alpha / sigma); "step", the share of rows that come before, as diffusers' `start` and `stop` count.

    Raises:
      ValueError: another axis; an interval that is empty, low > high.
    """
    if axis not in get_args(Axis):
        raise unknown("axis", axis, get_args(Axis))
    if not low <= high:
        raise ValueError(f"an interval goes from the smaller number to the larger one, got {low:g} and {high:g}")
    rows, n = table.rows, table.num_calls
    if axis == "step":
        return (np.arange(n) >= int(low * n)) & (np.arange(n) < int(high * n))
    with np.errstate(divide="ignore"):
        noise = np.asarray(rows.sigma) / np.asarray(rows.alpha)
        level = {"time": np.asarray(rows.time), "sigma": noise, "log_snr": -2 * np.log(noise)}[axis]
    return (level >= low) & (level <= high)


def _checked(interval: Any, n: int) -> Any:
    """Raises ValueError: not [N]."""
    if interval.shape != (n,):
        raise ValueError(f"interval must have shape {(n,)}, a bool for each row, got {interval.shape}")
    return interval


def _by_row(name: str, value: Number, n: int) -> Any:
    """[N] or [N, B]."""
    array = value if isinstance(value, jax.Array) else np.asarray(value, np.float32)
    if array.ndim > 2 or (array.ndim and array.shape[0] not in (1, n)):
        raise ValueError(f"{name} must be a number, [{n}] or [{n}, B], got shape {array.shape}")
    return _module(array).broadcast_to(array, (n, *array.shape[1:]))


def _module(*values: Any) -> ModuleType:
    """NumPy, as tables are made with, where nothing is traced."""
    return jnp if any(isinstance(value, jax.Array) for value in values) else np
