"""What every scheduler_config.json says in the same words: schedule, prediction, clipping and thresholding."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from ddpm_jax import schedules
from ddpm_jax.names import choose
from ddpm_jax.process import ModelFn, PredictionType
from ddpm_jax.samplers.configs import float32
from ddpm_jax.samplers.denoise import Denoise
from ddpm_jax.samplers.grids import checked_steps
from ddpm_jax.samplers.table import Table
from ddpm_jax.schedules import Schedule

Config = Mapping[str, Any]


class Preset(NamedTuple):
    """What a scheduler configuration stands for: samplers.sample(denoiser(model_fn), table, key, shape)."""

    table: Table
    denoiser: Callable[[ModelFn], Denoise]


PREDICTIONS: dict[str, PredictionType] = {"epsilon": "eps", "sample": "x_0", "v_prediction": "v"}

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
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")  # that all classes with betas have
NO_RESCALING = {name: value for name, value in DEFAULTS.items() if name != "rescale_betas_zero_snr"}
SPACED = {"timestep_spacing": "linspace", "steps_offset": 0}
# Of both classes for EDM's networks.
EDM_PREDICTIONS: dict[str, Literal["eps", "v"]] = {"epsilon": "eps", "v_prediction": "v"}
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


def schedule_of(config: Config) -> Schedule:
    """The Schedule of a configuration, in float64 from alphas_cumprod as diffusers has it in float32.

    It shows: float32's 1 - alphas_cumprod is wrong by up to 2e-4 at the first timesteps.

    Raises:
      ValueError: unknown beta_schedule; betas outside (0, 1).
    """
    keep = float32.alphas_cumprod(config).astype(np.float64)
    if config["rescale_betas_zero_snr"]:
        keep[-1] = 0
    return schedules.from_betas(1 - keep / np.append(1, keep[:-1]))


def checked_schedule(config: Config) -> Schedule:
    """The Schedule of a class that has one length; which beta schedules it has, `reading` knows.

    Raises:
      ValueError: trained_betas of another length.
    """
    schedule = schedule_of({"rescale_betas_zero_snr": False, **config})
    if schedule.num_timesteps != config["num_train_timesteps"]:
        raise ValueError(
            f"num_train_timesteps must be the number of trained_betas, {schedule.num_timesteps}, "
            f"got {config['num_train_timesteps']}"
        )
    return schedule


def trailing_timesteps(kept: int, length: int, num_steps: int | None) -> np.ndarray:
    """round(T' - k T / N) - 1 for k = 0, 1, .. while T' - k T / N > 0; the same in every class that has "trailing".

    Args:
      kept: T', the timesteps that lambda_min_clipped leaves; T in most classes.
      length: T.
      num_steps: N.

    Raises:
      ValueError: num_steps outside [1, T]; the last timestep is -1, as where the N-th step of T / N falls short of T
        by rounding (T = 1000, N = 61). The network knows none, and alphas_cumprod[-1] is that of the noisiest: DDPM
        and DDIM end in a white square, and the others tell the network -1.
    """
    times = np.round(np.arange(kept, 0, -length / checked_steps(num_steps, length))).astype(np.int64) - 1
    if times[-1] < 0:
        raise ValueError(
            f"num_steps {num_steps} of {length} timesteps makes diffusers' timestep_spacing 'trailing' end at timestep "
            "-1, by rounding: use another num_steps"
        )
    return times


def prediction_of(config: Config) -> PredictionType:
    """Our name of the configuration's prediction_type.

    Raises:
      ValueError: unknown prediction_type.
    """
    return choose("prediction_type", config["prediction_type"], PREDICTIONS)
