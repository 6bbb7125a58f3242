"""What the log-SNR classes of diffusers have in common: grids, thresholding, and what is refused."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np

from ddpm_jax.names import unknown
from ddpm_jax.process import LEARNED, ModelFn
from ddpm_jax.samplers.configs import common, float32
from ddpm_jax.samplers.configs.common import NO_RESCALING, Config, prediction_of
from ddpm_jax.samplers.denoise import Denoise, denoiser, thresholded
from ddpm_jax.samplers.grids import Grid, Level, dpm_grids, sigma_grids
from ddpm_jax.samplers.grids.dpm_grids import Last, Rounding
from ddpm_jax.schedules import Schedule

# What the constructors of all of these classes have.
SHARED = {
    **NO_RESCALING,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "lower_order_final": True,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
}
SHIFTED = {"use_dynamic_shifting": False, "time_shift_type": "exponential"}
# In the order in which diffusers asks for them.
SIGMA_SPACINGS = ("use_karras_sigmas", "use_lu_lambdas", "use_exponential_sigmas", "use_beta_sigmas")


def checked_schedule(config: Config) -> Schedule:
    """The schedule of a configuration of this family.

    Raises:
      ValueError: flow matching; trained_betas of another length.
    """
    if config["use_flow_sigmas"] or config["flow_shift"] != 1 or config.get("use_dynamic_shifting", False):
        raise ValueError(
            "flow matching (use_flow_sigmas, flow_shift other than 1, use_dynamic_shifting) is not supported: these "
            f"are samplers of diffusion models; got flow_shift {config['flow_shift']}"
        )
    return common.checked_schedule(config)


def denoiser_of(config: Config, *, threshold: bool = True) -> Callable[[ModelFn], Denoise]:
    """The configuration's prediction and thresholding around a network.

    A network that predicts eps with a learned variance has twice the channels; these samplers leave the second half.

    Args:
      config: settings, complete.
      threshold: False where diffusers ignores the setting.
    """
    prediction = prediction_of(config)
    variance = config.get("variance_type") if prediction == "eps" else None
    learned = "learned_range" if variance in LEARNED else "fixed_large"  # any, as nothing reads it

    def wrap(model_fn: ModelFn) -> Denoise:
        denoise = denoiser(model_fn, prediction, variance=learned)
        if not (threshold and config["thresholding"]):
            return denoise
        return thresholded(denoise, config["dynamic_thresholding_ratio"], config["sample_max_value"])

    return wrap


def last_of(config: Config) -> Last:
    """The last level that final_sigmas_type asks for.

    Raises:
      ValueError: unknown final_sigmas_type.
    """
    choices: dict[Any, Last] = {"zero": "clean", "sigma_min": "first"}
    if config["final_sigmas_type"] not in choices:
        raise unknown("final_sigmas_type", config["final_sigmas_type"], choices)
    return choices[config["final_sigmas_type"]]


def sigma_spacing(config: Config) -> str | None:
    """The setting of SIGMA_SPACINGS that is in force.

    Raises:
      ValueError: more than one of those that exclude each other.
    """
    found = [name for name in SIGMA_SPACINGS if config.get(name, False)]
    if len([name for name in found if name != "use_lu_lambdas"]) > 1:
        raise ValueError(f"only one of the sigma spacings can be used, got {', '.join(found)}")
    return found[0] if found else None


def grid_of(
    config: Config,
    num_steps: int | None,
    timesteps: Any = None,
    *,
    last: Last = "first",
    last_of_sigmas: Last = "same",
    karras_rounding: Rounding = "nearest",
    start: int = 0,
) -> Grid:
    """The grid of set_timesteps(num_steps, timesteps=timesteps).

    Args:
      config: settings, complete.
      num_steps: N.
      timesteps: instead.
      last: of grids that visit timesteps.
      last_of_sigmas: of grids that visit sigmas.
      karras_rounding: of the times of Karras and Lu sigmas; the others' are cut to integers.
      start: the step at which it begins; the whole grid is returned.

    Raises:
      ValueError: both or none of num_steps and timesteps; a combination that diffusers refuses or fails with.
    """
    schedule, spacing = checked_schedule(config), sigma_spacing(config)
    if (num_steps is None) == (timesteps is None):
        raise ValueError(f"give num_steps or timesteps, not both, got {num_steps} and {timesteps}")
    if timesteps is not None:
        if spacing is not None:
            raise ValueError(f"timesteps cannot be given together with {spacing}")
        grid = dpm_grids.at_timesteps(schedule, np.asarray(timesteps).astype(np.int64), last=last)
    elif spacing is None:
        grid = _spaced(config, schedule, num_steps, last)
    else:
        rounding = karras_rounding if spacing in ("use_karras_sigmas", "use_lu_lambdas") else "down"
        sigmas, positions = sigmas_of(config, schedule, spacing, num_steps)
        grid = dpm_grids.at_sigmas(schedule, sigmas, last=last_of_sigmas, rounding=rounding, positions=positions)
    refuse_repeated_start([level.time for level in grid.levels[:-1]], start)
    return replace(grid, levels=rounded(config, grid.levels))


def rounded(config: Config, levels: Sequence[Level]) -> tuple[Level, ...]:
    """The levels as diffusers has them in float32 where sigma / alpha is large, as at the end of a cosine schedule.

    There x_0 = (x - sigma eps) / alpha is a small difference, divided by 5e-5: that diffusers' sigma is 0.99999994 for
    0.9999999988 moves x_0 by 2e-3. In float64 a trace would not agree to 2e-4.
    """
    table = float32.sigmas(config)
    exactly = sigma_spacing(config) != "use_lu_lambdas"  # the exponentials of float32 logarithms miss the table

    def one(level: Level) -> Level:
        if level.sigma < 1000 * level.alpha:
            return level
        ratio = sigma_grids.ratio(level)
        entry = table[np.argmin(np.abs(table - ratio))]
        # What is not diffusers' rounding of an entry of its table is none of its entries.
        alpha, sigma = float32.alpha_sigma(float(entry if exactly and abs(entry / ratio - 1) < 1e-4 else ratio))
        return Level(level.time, float(alpha), float(sigma))

    return tuple(one(level) for level in levels)


def refuse_repeated_start(times: list[float], start: int = 0) -> None:
    """diffusers looks for its first step by its time, and finds the second of two; in the middle it is told its place.

    Raises:
      ValueError: it begins at the first of two times that are the same.
    """
    if start == 0 and len(times) > 1 and times[0] == times[1]:
        raise ValueError(f"the first two timesteps are both {times[0]:g}, where diffusers fails: use fewer steps")


def _spaced(config: Config, schedule: Schedule, num_steps: Any, last: Last) -> Grid:
    lambda_min = float(config.get("lambda_min_clipped", -inf))  # a JSON file may say "-inf"
    spacing = config.get("timestep_spacing", "linspace")
    if spacing == "leading":
        offset = config["steps_offset"]
        return dpm_grids.leading(schedule, num_steps, offset=offset, last=last, lambda_min=lambda_min)
    if spacing == "trailing":
        kept = dpm_grids.kept_timesteps(schedule, lambda_min)
        times = common.trailing_timesteps(kept, schedule.num_timesteps, num_steps)
        return dpm_grids.at_timesteps(schedule, times, last=last)
    if spacing == "linspace":
        return dpm_grids.linspace(schedule, num_steps, last=last, lambda_min=lambda_min)
    raise unknown("timestep_spacing", spacing, ("linspace", "leading", "trailing"))


def sigmas_of(
    config: Config, schedule: Schedule, spacing: str, num_steps: Any, *, upward: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The sigmas of a spacing, and their positions among the timesteps, in float32 as diffusers has them.

    Args:
      config: settings, complete.
      schedule: that of the configuration.
      spacing: one of SIGMA_SPACINGS.
      num_steps: how many.
      upward: from the lowest up, as the inverse class goes; a single one is then the lowest.
    """
    order = slice(None, None, -1) if upward else slice(None)
    exact, table = sigma_grids.of_schedule(schedule), float32.sigmas(config)
    rounded = _sigmas(config, spacing, num_steps, table[order])
    sigmas = rounded if spacing == "use_lu_lambdas" else _sigmas(config, spacing, num_steps, exact[order])
    return sigmas, float32.positions(rounded, table)


def _sigmas(config: Config, spacing: str, num_steps: Any, table: np.ndarray) -> np.ndarray:
    given = [config.get("sigma_min"), config.get("sigma_max")]
    last, first = (float(end if end is not None else table[i]) for end, i in zip(given, (0, -1), strict=True))
    if spacing == "use_karras_sigmas":
        return sigma_grids.karras_sigmas(num_steps, last, first)
    if spacing == "use_beta_sigmas":
        return sigma_grids.beta_sigmas(num_steps, last, first)
    if spacing == "use_exponential_sigmas":
        return sigma_grids.exponential_sigmas(num_steps, last, first)
    logs = np.log(table)  # Lu et al.'s lambdas, which have no ends of their own
    return np.exp(np.linspace(float(logs[-1]), float(logs[0]), num_steps))
