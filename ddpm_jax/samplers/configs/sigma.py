"""diffusers' schedulers that step x / alpha along sigma: Euler, Heun, DPM-2, SDE, LMS, EDM's Euler; and iPNDM.

They start at x_T = sigma_T z, or sqrt(sigma_T^2 + 1) z with "leading" spacing; the network takes in
x / sqrt(sigma^2 + 1); and what they return is x / alpha, the same as x where the grid ends in sigma = 0.
"""

from collections.abc import Callable, Mapping, Sequence
from math import hypot, inf
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.names import choose
from ddpm_jax.process import PredictionType
from ddpm_jax.samplers import denoise
from ddpm_jax.samplers.configs import float32
from ddpm_jax.samplers.configs.common import (
    DEFAULTS,
    EDM,
    EDM_PREDICTIONS,
    NO_RESCALING,
    PREDICTIONS,
    SPACED,
    Config,
    Preset,
    checked_schedule,
    trailing_timesteps,
)
from ddpm_jax.samplers.families.dpm_sde import dpm_solver_sde
from ddpm_jax.samplers.families.euler import euler_ancestral
from ddpm_jax.samplers.families.heun import heun
from ddpm_jax.samplers.families.ipndm import ipndm
from ddpm_jax.samplers.families.kdpm2 import kdpm2, kdpm2_ancestral
from ddpm_jax.samplers.families.late_churn import euler_late_churn
from ddpm_jax.samplers.families.lms import lms
from ddpm_jax.samplers.grids import Grid, Level, checked_steps, sigma_grids
from ddpm_jax.samplers.table import Table, start_at


class Path(NamedTuple):
    """times[i] is told at sigmas[i]; a list of sigmas may be longer than steps + 1, and its length matters to churn."""

    times: np.ndarray
    sigmas: np.ndarray

    def grid(self) -> Grid:
        *called, last = self.sigmas[: len(self.times) + 1]
        if not called:
            raise ValueError("a list of timesteps must have at least 1 element and one of sigmas 2, got fewer")
        levels = [sigma_grids.scaled(float(s), float(t)) for s, t in zip(called, self.times, strict=True)]
        # alpha = 1 at the end: what these schedulers return is x / alpha.
        return Grid((*levels, Level(0.0, 1.0, float(last))), idle_end=bool(np.isclose(last, called[-1], rtol=1e-6)))


def _steps(config: Config, num_steps: int | None, given: Sequence[float] | None) -> int:
    """How many steps: num_steps, or as many as are given by hand.

    Raises:
      ValueError: both or neither; more steps than the schedule has.
    """
    if (num_steps is None) == (given is None):
        raise ValueError(f"give either num_steps or a list of timesteps or sigmas, got {num_steps} and {given}")
    if num_steps is None:
        return len(given or ())
    return checked_steps(num_steps, config["num_train_timesteps"])


def _spaced(config: Config, num_steps: int) -> np.ndarray:
    """Times of timestep_spacing, from noisy to clean; float32 as in diffusers, since they may be fractional."""
    length = config["num_train_timesteps"]
    spacings: dict[str, Callable[[], np.ndarray]] = {
        "linspace": lambda: np.linspace(0, length - 1, num_steps, dtype=np.float32)[::-1],
        "leading": lambda: np.arange(num_steps)[::-1] * (length // num_steps) + config["steps_offset"],
        "trailing": lambda: trailing_timesteps(length, length, num_steps),
    }
    return choose("timestep_spacing", config["timestep_spacing"], spacings)().astype(np.float64)


CONVERSIONS = {
    "use_karras_sigmas": sigma_grids.karras_sigmas,
    "use_exponential_sigmas": sigma_grids.exponential_sigmas,
    "use_beta_sigmas": sigma_grids.beta_sigmas,
}


def _conversion(config: Config) -> Callable[..., np.ndarray] | None:
    asked = [name for name in CONVERSIONS if config.get(name)]
    if len(asked) > 1:
        raise ValueError(f"only one of {', '.join(CONVERSIONS)} can be true, got {' and '.join(asked)}")
    return CONVERSIONS[asked[0]] if asked else None


def _path(config: Config, table: np.ndarray, num_steps: int | None, timesteps: Sequence[float] | None = None) -> Path:
    """Times and sigmas of any class that has timestep_spacing, with sigma = 0 at the end; `table` has sigma_t."""
    count = _steps(config, num_steps, timesteps)
    convert = _conversion(config)
    if timesteps is not None and convert:
        raise ValueError("timesteps cannot be given where Karras, exponential or beta sigmas are asked for")
    times = _spaced(config, count) if timesteps is None else np.asarray(timesteps, np.float32).astype(np.float64)
    sigmas = np.interp(times, np.arange(len(table)), table)
    interpolations = {"linear": sigmas, "log_linear": sigma_grids.exponential_sigmas(count + 1, table[0], table[-1])}
    sigmas = choose("interpolation_type", config.get("interpolation_type", "linear"), interpolations)
    if convert:
        low, high = config.get("sigma_min"), config.get("sigma_max")
        sigmas = convert(count, sigmas[-1] if low is None else low, sigmas[0] if high is None else high)
        times = float32.positions(sigmas, table.astype(np.float32))
    return Path(times, np.append(sigmas, 0.0))


def _table(config: Config) -> np.ndarray:
    """sigma_t in diffusers' float32: with a cosine schedule its lowest sigma is off by 4e-4, which shows in x.

    Raises:
      ValueError: trained_betas of another length than says the rest.
    """
    checked_schedule(config)
    return float32.sigmas(config).astype(np.float64)


def _finished(config: Config, table: Table, prediction: PredictionType, clip: float | None = None) -> Preset:
    """The table with diffusers' start, and the denoiser.

    Raises:
      ValueError: a grid on which diffusers' own step index goes wrong; in the middle it is told where it is.
    """
    times = np.asarray(table.rows.time, np.float32)
    if table.first is None and (times[1:] == times[0]).any():
        raise ValueError(
            f"the first time of the grid must differ from the others, got {times[0]:g} again: diffusers skips steps "
            "there; use sigma_grids with a sampler instead"
        )
    leading = config["timestep_spacing"] not in ("linspace", "trailing")
    init = 1.0 if leading else table.rows.sigma[0]
    return Preset(table._replace(init=init), lambda model_fn: denoise.denoiser(model_fn, prediction, clip))


def _prediction(config: Config, *allowed: str) -> PredictionType:
    """Our name of prediction_type, which must be among those that diffusers implements for the class."""
    return choose("prediction_type", config["prediction_type"], {name: PREDICTIONS[name] for name in allowed})


def euler_discrete(
    config: Config,
    num_steps: int | None,
    *,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    start: int = 0,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = inf,
    s_noise: float = 1.0,
) -> Preset:
    """EulerDiscreteScheduler."""
    known: dict[str, PredictionType] = {**PREDICTIONS, "original_sample": "x_0"}
    prediction = choose("prediction_type", config["prediction_type"], known)
    table = _table(config)
    _conversion(config)  # refuses two, whether or not sigmas are given
    if sigmas is None:
        path = _path(config, table, num_steps, timesteps)
        path.sigmas[-1] = choose("final_sigmas_type", config["final_sigmas_type"], {"zero": 0, "sigma_min": table[0]})
    else:
        if timesteps is not None:
            raise ValueError("timesteps and sigmas cannot both be given")
        _steps(config, num_steps, sigmas)
        given = np.asarray(sigmas, np.float32).astype(np.float64)
        path = Path(float32.positions(given[:-1], table.astype(np.float32)), given)
    types = {"discrete": False, "continuous": prediction == "v"}  # diffusers: v alone is told log(sigma) / 4
    if choose("timestep_type", config["timestep_type"], types):
        if timesteps is not None:
            raise ValueError("timesteps cannot be given with timestep_type 'continuous'")
        path = path._replace(times=np.log(path.sigmas[:-1]) / 4)  # of all: log_linear has one more
    limits = {"s_tmin": float(s_tmin), "s_tmax": float(s_tmax), "s_noise": s_noise}

    def make(grid: Grid) -> Table:
        churn = s_churn * grid.num_steps / (len(path.sigmas) - 1)
        return euler_late_churn(grid, s_churn=churn, prediction=prediction, **limits)

    return _finished(config, start_at(make, path.grid(), start), prediction)


def euler_ancestral_discrete(config: Config, num_steps: int | None, *, start: int = 0) -> Preset:
    """EulerAncestralDiscreteScheduler."""
    prediction = _prediction(config, "epsilon", "v_prediction")
    grid = _path(config, _table(config), num_steps).grid()
    return _finished(config, start_at(euler_ancestral, grid, start), prediction)


def heun_discrete(
    config: Config, num_steps: int | None, *, timesteps: Sequence[float] | None = None, start: int = 0
) -> Preset:
    """HeunDiscreteScheduler."""
    prediction = _prediction(config, *PREDICTIONS)
    grid = _path(config, _table(config), num_steps, timesteps).grid()
    clip = config["clip_sample_range"] if config["clip_sample"] else None
    return _finished(config, start_at(heun, grid, start), prediction, clip)


def _half_way(
    config: Config, num_steps: int | None, build: Callable[..., Table], start: int, *, whole: bool, **options: float
) -> Preset:
    """The preset of a sampler with levels half way; whole: with Karras' sigmas, times of the grid are rounded."""
    prediction = _prediction(config, "epsilon", "v_prediction")
    table = _table(config)
    path = _path(config, table, num_steps)
    if whole and config["use_karras_sigmas"]:
        path = path._replace(times=path.times.round())  # but not the times half way
    half_way = sigma_grids.interpolated(table, np.arange(len(table)))
    return _finished(config, start_at(lambda grid: build(grid, half_way, **options), path.grid(), start), prediction)


def kdpm2_discrete(config: Config, num_steps: int | None, *, start: int = 0) -> Preset:
    """KDPM2DiscreteScheduler."""
    return _half_way(config, num_steps, kdpm2, start, whole=True)


def kdpm2_ancestral_discrete(config: Config, num_steps: int | None, *, start: int = 0) -> Preset:
    """KDPM2AncestralDiscreteScheduler."""
    return _half_way(config, num_steps, kdpm2_ancestral, start, whole=True)


def dpm_solver_sde_preset(config: Config, num_steps: int | None, *, start: int = 0, s_noise: float = 1.0) -> Preset:
    """DPMSolverSDEScheduler, with increments of a Brownian motion built from the noise of the rows.

    noise_sampler_seed says which motion it is; here the key of samplers.sample does, whether or not it is given.
    """
    seed = config["noise_sampler_seed"]
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise ValueError(f"noise_sampler_seed must be a whole number or null, got {seed!r}")
    return _half_way(config, num_steps, dpm_solver_sde, start, whole=False, s_noise=s_noise)


def lms_discrete(config: Config, num_steps: int | None, *, start: int = 0, order: int = 4) -> Preset:
    """LMSDiscreteScheduler.

    Begun in the middle, its first steps have the weights of the whole order and take what they do not know for 0.
    """
    prediction = _prediction(config, *PREDICTIONS)
    grid = _path(config, _table(config), num_steps).grid()
    whole, rest = lms(grid, order=order), start_at(lambda grid: lms(grid, order=order), grid, start)
    rows = jax.tree.map(lambda leaf: leaf[start:], whole.rows)
    return _finished(config, rest._replace(rows=rows), prediction)


def edm_grid(config: Config, num_steps: int | None) -> Grid:
    """The levels of diffusers' EDM classes; the last as it is returned, x itself."""
    num_steps = checked_steps(num_steps)
    low, high, rho = config["sigma_min"], config["sigma_max"], config["rho"]
    schedules: dict[str, Callable[[], np.ndarray]] = {
        "karras": lambda: sigma_grids.karras_sigmas(num_steps, low, high, rho=rho),
        # diffusers counts from sigma_min up and flips: a single step is at sigma_min.
        "exponential": lambda: sigma_grids.exponential_sigmas(num_steps, high, low)[::-1],
    }
    sigmas = choose("sigma_schedule", config["sigma_schedule"], schedules)()
    last = choose("final_sigmas_type", config["final_sigmas_type"], {"zero": 0.0, "sigma_min": sigmas[-1]})
    level_at = sigma_grids.continuous(config["sigma_data"])
    return Grid((*(level_at(float(s)) for s in sigmas), Level(0.0, 1.0, float(last))), idle_end=last > 0)


def edm_preset(config: Config, table: Table) -> Preset:
    """x_T = sqrt(sigma_max^2 + 1) z, whatever sigma_data; and the preconditioned network."""
    prediction = choose("prediction_type", config["prediction_type"], EDM_PREDICTIONS)
    sigma_data = config["sigma_data"]
    init = hypot(config["sigma_max"], 1) * table.rows.alpha[0]
    return Preset(table._replace(init=init), lambda model_fn: denoise.preconditioned(model_fn, sigma_data, prediction))


def edm_euler(
    config: Config,
    num_steps: int | None,
    *,
    start: int = 0,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = inf,
    s_noise: float = 1.0,
) -> Preset:
    """EDMEulerScheduler."""
    limits = {"s_tmin": float(s_tmin), "s_tmax": float(s_tmax), "s_noise": s_noise}
    levels = edm_grid(config, num_steps)

    def make(grid: Grid) -> Table:
        churn = s_churn * grid.num_steps / levels.num_steps
        return euler_late_churn(grid, prediction="edm", sigma_data=config["sigma_data"], s_churn=churn, **limits)

    return edm_preset(config, start_at(make, levels, start))


def ipndm_preset(config: Config, num_steps: int | None, *, start: int = 0) -> Preset:
    """IPNDMScheduler: sigma = sin^2(pi u / 2), u = 1 .. 0; the network predicts v at 2 / pi atan(sigma / alpha)."""
    if config["trained_betas"] is not None:
        sigmas = np.asarray(config["trained_betas"], np.float64)
    else:
        sigmas = np.sin(np.linspace(1, 0, checked_steps(num_steps) + 1) * np.pi / 2) ** 2
    alphas = np.sqrt(1 - sigmas**2)
    times = np.arctan2(sigmas, alphas) / np.pi * 2
    levels = zip(times.tolist(), alphas.tolist(), sigmas.tolist(), strict=True)
    grid = Grid(tuple(Level(*level) for level in levels))
    return Preset(start_at(ipndm, grid, start), lambda f: denoise.denoiser(f, "v"))


FLAGS = dict.fromkeys(CONVERSIONS, False)
LATENT_ENDS = {"beta_start": 0.00085, "beta_end": 0.012}
EULER = {
    "interpolation_type": "linear",
    "sigma_min": None,
    "sigma_max": None,
    "timestep_type": "discrete",
    "final_sigmas_type": "zero",
}
KDPM2 = {**NO_RESCALING, **LATENT_ENDS, **SPACED, **FLAGS}

CLASSES: dict[str, tuple[Callable[..., Preset], Mapping[str, Any]]] = {
    "EulerDiscreteScheduler": (euler_discrete, {**DEFAULTS, **SPACED, **FLAGS, **EULER}),
    "EulerAncestralDiscreteScheduler": (euler_ancestral_discrete, {**DEFAULTS, **SPACED}),
    "HeunDiscreteScheduler": (heun_discrete, {**KDPM2, "clip_sample": False, "clip_sample_range": 1.0}),
    "KDPM2DiscreteScheduler": (kdpm2_discrete, KDPM2),
    "KDPM2AncestralDiscreteScheduler": (kdpm2_ancestral_discrete, KDPM2),
    "DPMSolverSDEScheduler": (dpm_solver_sde_preset, {**KDPM2, "noise_sampler_seed": None}),
    "LMSDiscreteScheduler": (lms_discrete, {**NO_RESCALING, **SPACED, **FLAGS}),
    "EDMEulerScheduler": (edm_euler, EDM),
    "IPNDMScheduler": (ipndm_preset, {"num_train_timesteps": 1000, "trained_betas": None}),
}
