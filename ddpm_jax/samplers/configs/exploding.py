"""diffusers' schedulers of networks that are told sigma itself, of x_0 + sigma eps: consistency models and NCSN++."""

from collections.abc import Callable, Mapping, Sequence
from math import log
from typing import Any

import numpy as np

from ddpm_jax.process import ModelFn
from ddpm_jax.samplers import grids
from ddpm_jax.samplers.configs import float32
from ddpm_jax.samplers.configs.common import Config, Preset
from ddpm_jax.samplers.denoise import Denoise, clipped, consistency_denoiser, denoiser
from ddpm_jax.samplers.families.ancestral import ddpm
from ddpm_jax.samplers.families.consistency import consistency
from ddpm_jax.samplers.grids import Grid, Level, Pairs, sigma_grids
from ddpm_jax.samplers.table import start_at


def _consistency_models(
    config: Config, num_steps: int | None, *, timesteps: Sequence[int] | None = None, start: int = 0
) -> Preset:
    """The timesteps of CMStochasticIterativeScheduler count down to 0, the noisiest being N (T // N) - T // N."""
    length, low, data = config["num_train_timesteps"], config["sigma_min"], config["sigma_data"]
    if (num_steps is None) == (timesteps is None):
        raise ValueError(f"give either num_steps or timesteps, got {num_steps} and {timesteps}")
    if length < 2:
        raise ValueError(f"num_train_timesteps must be at least 2, the two ends of the sigmas, got {length}")
    if timesteps is None:
        steps = np.arange(grids.checked_steps(num_steps, length)) * (length // grids.checked_steps(num_steps, length))
    else:
        steps = np.asarray(timesteps)[::-1]
        if not len(steps) or steps.dtype.kind not in "iu" or (np.diff(steps) <= 0).any():
            raise ValueError(f"timesteps must be whole numbers that decrease, got {timesteps}")
        if steps[0] < 0 or steps[-1] >= length:
            raise ValueError(f"timesteps must lie in [0, {length}), got {timesteps}")
    sigmas = sigma_grids.karras_sigmas(length, low, config["sigma_max"], rho=config["rho"])[steps]
    levels = [sigma_grids.scaled(float(sigma), 250 * log(sigma), data) for sigma in sigmas]
    grid = Grid((*levels, Level(0.0, 1.0, min(low, float(sigmas[-1])))), idle_end=bool(steps[-1] == length - 1))
    table = start_at(lambda grid: consistency(grid, sigma_min=low, s_noise=config["s_noise"]), grid, start)

    def wrap(model_fn: ModelFn) -> Denoise:
        denoise = consistency_denoiser(model_fn, low, data)
        return clipped(denoise, 1.0) if config["clip_denoised"] else denoise

    # diffusers starts at sigma_max z, whichever the first sigma is.
    return Preset(table._replace(init=config["sigma_max"] * levels[0].alpha), wrap)


def _score_sde_ve(
    config: Config, num_steps: int | None, *, sampling_eps: float | None = None, start: int = 0
) -> Preset:
    """The predictor of ScoreSdeVeScheduler; the last step adds no noise, as in its pipeline."""
    if config["correct_steps"]:
        raise ValueError(
            f"correct_steps must be 0, got {config['correct_steps']}: how long a corrector's step is follows from the "
            "norms of score and noise, and not from a table"
        )
    n = grids.checked_steps(num_steps, least=2)
    low, high = config["sigma_min"], config["sigma_max"]
    last = config["sampling_eps"] if sampling_eps is None else sampling_eps
    times = float32.linspace(1.0, last, n)
    sigmas = sigma_grids.exponential_sigmas(n, low, high)[::-1]
    # In float32, which may fall short of a whole number: two steps in a row then start at one sigma.
    at = (times * np.float32(n - 1)).astype(int)
    starts = [Level(low * (high / low) ** float(t), 1.0, float(sigmas[i])) for t, i in zip(times, at, strict=True)]
    ends = [Level(0.0, 1.0, float(sigmas[i - 1]) if i else 0.0) for i in at]
    pairs = Pairs(tuple(zip(starts, ends, strict=True)))
    table = start_at(lambda pairs: ddpm(pairs, variance="fixed_large"), pairs, start)
    return Preset(table._replace(init=high), lambda model_fn: denoiser(model_fn, "score"))


CLASSES: dict[str, tuple[Callable[..., Preset], Mapping[str, Any]]] = {
    "CMStochasticIterativeScheduler": (
        _consistency_models,
        {
            "num_train_timesteps": 40,
            "sigma_min": 0.002,
            "sigma_max": 80.0,
            "sigma_data": 0.5,
            "s_noise": 1.0,
            "rho": 7.0,
            "clip_denoised": True,
        },
    ),
    "ScoreSdeVeScheduler": (
        _score_sde_ve,
        {
            "num_train_timesteps": 2000,
            "snr": 0.15,
            "sigma_min": 0.01,
            "sigma_max": 1348.0,
            "sampling_eps": 1e-5,
            "correct_steps": 1,
        },
    ),
}
