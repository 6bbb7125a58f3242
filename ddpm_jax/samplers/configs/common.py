"""What every scheduler_config.json says in the same words: schedule, prediction, clipping and thresholding."""

from collections.abc import Callable, Collection, Mapping
from math import expm1
from typing import Any, NamedTuple

from ddpm_jax import schedules
from ddpm_jax.names import unknown
from ddpm_jax.process import ModelFn
from ddpm_jax.samplers.denoise import Denoise
from ddpm_jax.samplers.table import Table
from ddpm_jax.schedules import Schedule

Config = Mapping[str, Any]


class Preset(NamedTuple):
    """What a scheduler configuration stands for: samplers.sample(denoiser(model_fn), table, key, shape)."""

    table: Table
    denoiser: Callable[[ModelFn], Denoise]


PREDICTIONS = {"epsilon": "eps", "sample": "x_0", "v_prediction": "v"}

# What a configuration means that leaves these out; the same in all classes.
DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "prediction_type": "epsilon",
}
NO_RESCALING = {name: value for name, value in DEFAULTS.items() if name != "rescale_betas_zero_snr"}
SPACED = {"timestep_spacing": "linspace", "steps_offset": 0}
# Of both classes for EDM's networks.
EDM = {
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "final_sigmas_type": "zero",
}

BETAS: dict[str, Callable[[int, float, float], Schedule]] = {
    "linear": lambda n, start, end: schedules.linear(n, beta_start=start, beta_end=end),
    "scaled_linear": lambda n, start, end: schedules.quad(n, beta_start=start, beta_end=end),
    "squaredcos_cap_v2": lambda n, start, end: schedules.cosine(n),
    "sigmoid": lambda n, start, end: schedules.sigmoid(n, beta_start=start, beta_end=end),
    # alphas_cumprod = exp(-12 (t + 1) / T): every step keeps the same fraction.
    "exp": lambda n, start, end: schedules.const(n, beta_end=min(-expm1(-12 / n), 0.999)),
}


def schedule_of(config: Config) -> Schedule:
    """The Schedule of a configuration, in float64 where diffusers has float32 tables.

    Raises:
      ValueError: unknown beta_schedule; betas outside (0, 1).
    """
    if config["trained_betas"] is not None:
        schedule = schedules.from_betas(config["trained_betas"])
    elif config["beta_schedule"] in BETAS:
        make = BETAS[config["beta_schedule"]]
        schedule = make(config["num_train_timesteps"], config["beta_start"], config["beta_end"])
    else:
        raise unknown("beta_schedule", config["beta_schedule"], BETAS)
    return schedules.zero_terminal_snr(schedule) if config["rescale_betas_zero_snr"] else schedule


def checked_schedule(config: Config, known: Collection[str]) -> Schedule:
    """The Schedule of a class that has these beta schedules and one length.

    Raises:
      ValueError: a beta_schedule that the class does not have; trained_betas of another length.
    """
    if config["trained_betas"] is None and config["beta_schedule"] not in known:
        raise unknown("beta_schedule", config["beta_schedule"], known)
    schedule = schedule_of({"rescale_betas_zero_snr": False, **config})
    if schedule.num_timesteps != config["num_train_timesteps"]:
        raise ValueError(
            f"num_train_timesteps must be the number of trained_betas, {schedule.num_timesteps}, "
            f"got {config['num_train_timesteps']}"
        )
    return schedule


def prediction_of(config: Config) -> Any:
    """Our name of the configuration's prediction_type.

    Raises:
      ValueError: unknown prediction_type.
    """
    if config["prediction_type"] not in PREDICTIONS:
        raise unknown("prediction_type", config["prediction_type"], PREDICTIONS)
    return PREDICTIONS[config["prediction_type"]]
