"""x_k ~ q(x_k | x_0), then the sampler from step k on: pictures like a given one, the less so the earlier it begins.

Source: Meng et al. 2022 (arXiv:2108.01073), algorithm 1 ("SDEdit"), with any sampler.
"""

import inspect
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax import samplers
from ddpm_jax.keys import example_keys
from ddpm_jax.names import choose
from ddpm_jax.samplers import Denoise, Table, from_diffusers_config
from ddpm_jax.samplers.catalogue import ALIASES, CATALOGUE, GRIDS, make_table, other_variance
from ddpm_jax.samplers.configs import CLASSES
from ddpm_jax.samplers.configs.common import Preset
from ddpm_jax.samplers.run import START
from ddpm_jax.trained import Trained


def check_strength(strength: float) -> None:
    """Raises ValueError: strength outside (0, 1]."""
    if not 0 < strength <= 1:
        raise ValueError(f"--strength must lie in (0, 1], got {strength}")


def steps_run(num_steps: int, strength: float) -> int:
    """int(min(N strength, N)): how many of the N steps are run, the last ones.

    Source: the convention of diffusers' image-to-image pipelines.

    Raises:
      ValueError: strength outside (0, 1], or so small that no step is run.
    """
    check_strength(strength)
    count = int(min(num_steps * strength, num_steps))
    if not count:
        raise ValueError(f"--strength {strength} of {num_steps} steps is less than one: at least {1 / num_steps:.3g}")
    return count


def preset(
    trained: Trained,
    strength: float,
    sampler: str | None = None,
    num_steps: int | None = None,
    grid: str | None = None,
    say: Callable[[str], None] = warnings.warn,
) -> Preset:
    """(table, denoiser) of the last steps_run(N, strength) steps of a sampler.

    Args:
      trained: the network.
      strength: in (0, 1].
      sampler: a name of the catalogue; None for the network's default.
      num_steps: of the whole table; None for the network's number.
      grid: a name of the catalogue; None for the sampler's own.
      say: is told if the sampler has another variance than the network was trained for.

    Raises:
      ValueError: strength out of range; unknown names; a number of steps that the sampler has not, or a sampler that
        cannot begin in the middle.
    """
    num_steps = trained.num_steps if num_steps is None else num_steps
    if sampler is None and trained.scheduler_config is not None:
        if grid is not None:
            raise ValueError(f"its own sampler comes with its own steps: give --sampler together with --grid {grid}")
        return _own(trained, num_steps, strength)
    name = trained.sampler if sampler is None else sampler
    if (other := other_variance(name, trained.variance)) is not None:
        say(other)
    whole = make_table(name, trained.schedule, num_steps, grid, variance=trained.variance)  # checks all names
    spread = CATALOGUE[ALIASES.get(name, name)].spread if grid is None else choose("grid", grid, GRIDS)
    count = spread(trained.schedule, num_steps).num_steps  # some grids have other numbers of steps than asked for
    if start := count - steps_run(count, strength):
        whole = make_table(name, trained.schedule, num_steps, grid, variance=trained.variance, start=start)
    return Preset(whole, trained.denoiser)


def _own(trained: Trained, num_steps: int, strength: float) -> Preset:
    """Of the scheduler that it came with."""
    assert trained.scheduler_config is not None
    whole = trained.default_sampler(num_steps)
    if not (start := num_steps - steps_run(num_steps, strength)):
        return whole
    name = trained.scheduler_config["_class_name"]
    if "start" not in inspect.signature(CLASSES[name][0]).parameters:
        raise ValueError(f"its own sampler, {name}, cannot begin in the middle (--strength {strength}): give --sampler")
    # What `default_sampler` has not told the scheduler of a learned variance shows in its table.
    learns = whole.table.rows.spread.any()
    config = {key: value for key, value in trained.scheduler_config.items() if learns or key != "variance_type"}
    return whole._replace(table=from_diffusers_config(config, num_steps, start=start).table)


def start_noise(key: jax.Array, shape: tuple[int, ...], first_index: int | jax.Array = 0) -> jax.Array:
    """z ~ N(0, I) float32 of `shape` [B, ...]: what `samplers.sample` begins with, of the same key and indices."""
    draw = lambda key: jax.random.normal(jax.random.fold_in(key, START), shape[1:])
    return jax.vmap(draw)(example_keys(key, first_index, shape[0]))


def noised(table: Table, x_0: jax.Array, eps: jax.Array, row: int = 0) -> jax.Array:
    """x = alpha x_0 + sigma eps at the level of a row, the first by default: q(x | x_0) for eps ~ N(0, I)."""
    alpha, sigma = (jnp.asarray(part[row], x_0.dtype) for part in (table.rows.alpha, table.rows.sigma))
    return alpha * x_0 + sigma * eps


def image_to_image(
    denoise: Denoise, table: Table, key: jax.Array, x_0: jax.Array, *, first_index: int | jax.Array = 0
) -> jax.Array:
    """Samples like x_0 [B, ...]: the table run from x_0 with the noise of its first row.

    Args:
      denoise: the network's.
      table: of the last steps of a sampler, as from `preset` or `samplers.start_at`.
      key: of all samples.
      x_0: images in [-1, 1].
      first_index: the index of the first one among all.
    """
    x_t = noised(table, x_0, start_noise(key, x_0.shape, first_index))
    return samplers.sample(denoise, table, key, x_0.shape, x_t=x_t, first_index=first_index)
