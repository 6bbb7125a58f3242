"""diffusers' DDPM, unCLIP, DDIM, DDIM-inverse, PNDM, LCM, TCD and RePaint schedulers as tables and denoisers.

The parallel classes of DDPM and DDIM take the steps of theirs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ddpm_jax.names import choose
from ddpm_jax.process import ModelFn, VarianceType
from ddpm_jax.samplers import grids
from ddpm_jax.samplers.configs.common import (
    DEFAULTS,
    Config,
    Preset,
    checked_schedule,
    prediction_of,
    trailing_timesteps,
)
from ddpm_jax.samplers.denoise import Denoise, EpsAfterClip, clipped, denoiser, log_variance, thresholded
from ddpm_jax.samplers.families.ancestral import ddpm
from ddpm_jax.samplers.families.consistency import inner_levels, lcm, tcd
from ddpm_jax.samplers.families.implicit import ddim, ddim_inverse
from ddpm_jax.samplers.families.pndm import plms, pndm
from ddpm_jax.samplers.families.repaint import resampled, visits
from ddpm_jax.samplers.grids import Grid, Pairs, level
from ddpm_jax.samplers.table import Row, Table, sampler, start_at
from ddpm_jax.schedules import Schedule

SPACINGS: dict[str, Callable[[Schedule, int, int], list[int]]] = {
    "leading": lambda schedule, n, offset: _times(grids.leading(schedule, n, offset=offset)),
    "trailing": lambda schedule, n, offset: _trailing(schedule.num_timesteps, n),
    "linspace": lambda schedule, n, offset: _times(grids.linspace(schedule, n)),
}


def _trailing(length: int, num_steps: int) -> list[int]:
    return trailing_timesteps(length, length, num_steps).tolist()


LAST: dict[bool, grids.LastLevel] = {True: "clean", False: "first"}


def _spaced(config: Config, schedule: Schedule, num_steps: int | None) -> list[int]:
    """Timesteps of the configuration's spacing, from noisy to clean."""
    if num_steps is None:
        raise ValueError("num_steps must be given where no list of timesteps is")
    spaced = choose("timestep_spacing", config["timestep_spacing"], SPACINGS)
    return spaced(schedule, num_steps, config["steps_offset"])


def _times(grid: Grid) -> list[int]:
    return [int(s.time) for s in grid.levels[:-1]]


def _listed(num_steps: int | None, timesteps: Sequence[int] | None) -> bool:
    """Whether the timesteps are given as a list."""
    if (num_steps is None) == (timesteps is None):
        raise ValueError(f"give either num_steps or timesteps, got {num_steps} and {timesteps}")
    return timesteps is not None


def _preset(
    config: Config, table: Table, eps_after_clip: EpsAfterClip = "rederived", variance: VarianceType = "fixed_large"
) -> Preset:
    """The table with the denoiser of the configuration's prediction, thresholding and clipping.

    Raises:
      ValueError: a prediction that says nothing at one of the levels, where diffusers divides by 0.
    """
    prediction = prediction_of(config)
    for name, impossible in (("eps", table.rows.alpha == 0), ("x_0", table.rows.sigma == 0)):
        if prediction == name and impossible.any():
            time = table.rows.time[np.argmax(impossible)]
            raise ValueError(
                f"prediction_type {config['prediction_type']!r} says nothing about the step at time {time:g}, where "
                f"{'alphas_cumprod is 0' if name == 'eps' else 'the image has no noise'} and diffusers divides by 0; "
                "use prediction_type 'v_prediction' or other timesteps"
            )

    def make(model_fn: ModelFn) -> Denoise:
        denoise = denoiser(model_fn, prediction, variance=variance)
        if config["thresholding"]:
            ratio, most = config["dynamic_thresholding_ratio"], config["sample_max_value"]
            return thresholded(denoise, ratio, most, eps_after_clip)
        return clipped(denoise, config["clip_sample_range"], eps_after_clip) if config["clip_sample"] else denoise

    return Preset(table, make)


def _ddpm(config: Config, num_steps: int | None, *, timesteps: Sequence[int] | None = None, start: int = 0) -> Preset:
    schedule = checked_schedule(config)
    steps = timesteps if _listed(num_steps, timesteps) else _spaced(config, schedule, num_steps)
    assert steps is not None
    name = config["variance_type"]
    if name == "fixed_large_log":
        raise ValueError("variance_type 'fixed_large_log' is the root of a logarithm in diffusers: use 'fixed_large'")
    law = choose("variance_type", name, VARIANCES)
    # diffusers leaves the noise away at t = 0, rather than at the last step.
    make = lambda grid: ddpm(grid, variance=law, last_step="sample" if steps[-1] > 0 else "mean")
    table = start_at(make, grids.from_timesteps(schedule, steps), start)
    preset = _preset(config, table, variance=law)
    if law == "learned":
        return preset._replace(denoiser=lambda model_fn: preset.denoiser(log_variance(model_fn)))
    return preset


VARIANCES: dict[str, VarianceType] = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "learned": "learned",
    "learned_range": "learned_range",
}


def _unclip(config: Config, num_steps: int | None, *, start: int = 0) -> Preset:
    """Steps from each timestep to the next, as UnCLIPPipeline asks for with prev_timestep."""
    laws: dict[str, Any] = {"fixed_small_log": "fixed_small", "learned_range": "learned_range"}
    law = choose("variance_type", config["variance_type"], laws)
    choose("prediction_type", config["prediction_type"], {"epsilon": None, "sample": None})
    config = {**DEFAULTS, **UNCLIPPED, **config}
    schedule = checked_schedule(config)
    n = grids.checked_steps(num_steps, schedule.num_timesteps, least=2)
    steps = np.round(np.arange(n) * ((schedule.num_timesteps - 1) / (n - 1))).astype(int)[::-1]
    table = start_at(lambda grid: ddpm(grid, variance=law), grids.from_timesteps(schedule, steps), start)
    return _preset(config, table, variance=law)


def _ddim(
    config: Config,
    num_steps: int | None,
    *,
    start: int = 0,
    eta: float = 0.0,
    use_clipped_model_output: bool = False,
) -> Preset:
    # With eta = 1 and alpha_s = 0 the weight of eps, here exactly 0, is rounding in diffusers: 2e-4, or NaN.
    table = start_at(lambda pairs: ddim(pairs, eta=eta), _strided(config, checked_schedule(config), num_steps), start)
    return _preset(config, table, "rederived" if use_clipped_model_output else "raw")


def _strided(config: Config, schedule: Schedule, num_steps: int | None) -> Pairs:
    """Steps from t to t - T // N, which need not be the next t."""
    steps = _spaced(config, schedule, num_steps)
    stride = schedule.num_timesteps // len(steps)
    return grids.strided(schedule, steps, stride, last=LAST[config["set_alpha_to_one"]])


def _ddim_inverse(config: Config, num_steps: int | None) -> Preset:
    if config["timestep_spacing"] == "linspace":
        raise ValueError("timestep_spacing must be leading or trailing in DDIMInverseScheduler, got 'linspace'")
    config = {**config, **THRESHOLDING}
    if config["set_alpha_to_zero"] is not None:  # its old name
        config = {**config, "set_alpha_to_one": config["set_alpha_to_zero"]}
    schedule = checked_schedule(config)
    return _preset(config, ddim_inverse(_strided(config, schedule, num_steps)), "raw")


def _pndm(config: Config, num_steps: int | None) -> Preset:
    if config["prediction_type"] == "sample":
        raise ValueError("prediction_type must be epsilon or v_prediction in PNDMScheduler, got 'sample'")
    config = {**config, **UNCLIPPED, "rescale_betas_zero_snr": False}
    schedule = checked_schedule(config)
    pairs = _strided(config, schedule, num_steps)
    steps, stride = [int(s.time) for s, _ in pairs.pairs], schedule.num_timesteps // pairs.num_steps
    average = "v" if config["prediction_type"] == "v_prediction" else "eps"
    at = lambda t: level(schedule, t)
    if config["skip_prk_steps"]:
        restart = at(steps[1] + stride) if len(steps) > 1 else None
        return _preset(config, plms(pairs, average=average, restart=restart))
    if len(steps) < 4:
        raise ValueError(f"PNDMScheduler needs at least 4 steps, or skip_prk_steps, got {len(steps)}")
    middle = [at(t + stride // 2) for t in steps[1:4]]
    reached = [at(t - stride // 2) for t in steps[:3]]
    return _preset(config, pndm(pairs, middle=middle, reached=reached, average=average))


def _distilled(
    config: Config,
    num_steps: int | None,
    timesteps: Sequence[int] | None,
    known: np.ndarray,
    strength: float,
    most: int,
) -> list[int]:
    """Evenly chosen ones of the timesteps that the network was distilled at, at most so many, or those listed."""
    if _listed(num_steps, timesteps):
        assert timesteps is not None
        return list(timesteps)[len(timesteps) - min(int(len(timesteps) * strength), len(timesteps)) :]
    assert num_steps is not None
    most = min(most, len(known))
    if not 1 <= num_steps <= most:
        raise ValueError(f"num_steps must lie in [1, {most}], the steps distilled, got {num_steps}")
    return [int(t) for t in known[::-1][np.floor(np.linspace(0, len(known), num_steps, endpoint=False)).astype(int)]]


def _distilled_at(config: Config, original_steps: int, strength: float) -> np.ndarray:
    length = config["num_train_timesteps"]
    if not 1 <= original_steps <= length:
        raise ValueError(f"original_inference_steps must lie in [1, {length}], got {original_steps}")
    return np.arange(1, int(original_steps * strength) + 1) * (length // original_steps) - 1


def _lcm(
    config: Config,
    num_steps: int | None,
    *,
    original_inference_steps: int | None = None,
    timesteps: Sequence[int] | None = None,
    strength: float = 1.0,
    start: int = 0,
) -> Preset:
    if timesteps is not None and strength < 1:
        raise ValueError("strength with a list of timesteps: LCMScheduler then ends in noise; shorten the list instead")
    original = config["original_inference_steps"] if original_inference_steps is None else original_inference_steps
    steps = _distilled(config, num_steps, timesteps, _distilled_at(config, original, strength), strength, original)
    make = lambda grid: lcm(grid, timestep_scaling=config["timestep_scaling"])
    return _preset(config, start_at(make, grids.from_timesteps(checked_schedule(config), steps), start))


def _tcd(
    config: Config,
    num_steps: int | None,
    *,
    original_inference_steps: int | None = None,
    timesteps: Sequence[int] | None = None,
    strength: float = 1.0,
    start: int = 0,
    eta: float = 0.3,
) -> Preset:
    original = config["original_inference_steps"] if original_inference_steps is None else original_inference_steps
    known = _distilled_at(config, original, strength)
    if original_inference_steps is not None:  # diffusers then takes every timestep
        known = np.arange(int(config["num_train_timesteps"] * strength))
    schedule = checked_schedule(config)
    steps = _distilled(config, num_steps, timesteps, known, strength, original)
    grids.from_timesteps(schedule, steps)  # checks them
    pairs = Pairs(tuple((level(schedule, s), level(schedule, t)) for s, t in zip(steps, [*steps[1:], 0], strict=True)))
    table = start_at(lambda pairs: tcd(pairs, inner=inner_levels(schedule, pairs, eta)), pairs, start)
    # The class has settings for clipping and thresholding, and does not read them.
    return _preset({**config, **UNCLIPPED}, table)


def _repaint(
    config: Config,
    num_steps: int | None,
    *,
    jump_length: int = 10,
    jump_n_sample: int = 10,
    eta: float | None = None,
) -> Preset:
    if num_steps is None:
        raise ValueError("num_steps must be given")
    config = {**config, **UNCLIPPED, "clip_sample": config["clip_sample"], "prediction_type": "epsilon"}
    schedule = checked_schedule({**config, "rescale_betas_zero_snr": False})
    num_steps = min(num_steps, schedule.num_timesteps)
    path = visits(num_steps, jump_length, jump_n_sample)
    table = _repaint_rows(schedule, schedule.num_timesteps // num_steps, path, config["eta"] if eta is None else eta)
    return _preset(config, table, "raw")


@sampler
def _repaint_rows(schedule: Schedule, stride: int, path: list[tuple[int, int]], eta: float) -> Iterator[Row]:
    """`repaint`, but a jump up from level i - 1 takes the betas of the levels from i on, one level too noisy."""
    for i, climb in path:
        betas = schedule.betas_float64[i * stride : (i + climb) * stride]
        s, t = level(schedule, i * stride), level(schedule, (i - 1) * stride)
        yield resampled(s, t, float(np.exp(np.log1p(-betas).sum() / 2)), eta)


THRESHOLDING = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
UNCLIPPED = {**THRESHOLDING, "clip_sample": False, "clip_sample_range": 1.0}
SPACED = {**DEFAULTS, **UNCLIPPED, "clip_sample": True, "timestep_spacing": "leading", "steps_offset": 0}
DISTILLED = {
    **SPACED,
    "clip_sample": False,
    "set_alpha_to_one": True,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "original_inference_steps": 50,
    "timestep_scaling": 10.0,
}
BETAS_ONLY = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
PNDM = {name: SPACED[name] for name in (*BETAS_ONLY, "prediction_type", "timestep_spacing", "steps_offset")}
REPAINT = {name: SPACED[name] for name in BETAS_ONLY}

UNCLIP = {
    "num_train_timesteps": 1000,
    "variance_type": "fixed_small_log",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
    "beta_schedule": "squaredcos_cap_v2",
}
INVERSE = {name: value for name, value in SPACED.items() if name not in THRESHOLDING}
DDPM = (_ddpm, {**SPACED, "variance_type": "fixed_small"})
DDIM = (_ddim, {**SPACED, "set_alpha_to_one": True})

CLASSES: dict[str, tuple[Callable[..., Preset], Mapping[str, Any]]] = {
    "DDPMScheduler": DDPM,
    "DDPMParallelScheduler": DDPM,
    "DDIMScheduler": DDIM,
    "DDIMParallelScheduler": DDIM,
    "DDIMInverseScheduler": (_ddim_inverse, {**INVERSE, "set_alpha_to_one": True, "set_alpha_to_zero": None}),
    "PNDMScheduler": (_pndm, {**PNDM, "skip_prk_steps": False, "set_alpha_to_one": False}),
    "LCMScheduler": (_lcm, DISTILLED),
    "TCDScheduler": (_tcd, DISTILLED),
    "UnCLIPScheduler": (_unclip, UNCLIP),
    "RePaintScheduler": (_repaint, {**REPAINT, "eta": 0.0, "clip_sample": True}),
}
