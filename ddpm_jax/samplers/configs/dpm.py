"""diffusers' DPM-Solver schedulers, and with them all classes that integrate in the log-SNR."""

from math import hypot, inf, log
from typing import Any

import numpy as np

from ddpm_jax.names import choose, unknown
from ddpm_jax.process import ModelFn
from ddpm_jax.samplers.configs import adams, common, float32
from ddpm_jax.samplers.configs.common import EDM_PREDICTIONS, SPACED, Config, Preset
from ddpm_jax.samplers.configs.dpm_common import (
    SHARED,
    SHIFTED,
    checked_schedule,
    denoiser_of,
    grid_of,
    last_of,
    refuse_repeated_start,
    rounded,
    sigma_spacing,
    sigmas_of,
)
from ddpm_jax.samplers.denoise import Denoise, preconditioned, thresholded
from ddpm_jax.samplers.families.dpm_solver import Method, ThirdOrder, dpm_solver
from ddpm_jax.samplers.families.exponential import Predict, step_orders
from ddpm_jax.samplers.families.singlestep import dpm_solver_singlestep
from ddpm_jax.samplers.grids import Grid, Level, dpm_grids, sigma_grids
from ddpm_jax.samplers.table import start_at

# algorithm_type: (what is integrated, eta). "deis" is what a DEIS configuration brings along.
ALGORITHMS: dict[str, tuple[Predict, float]] = {
    "dpmsolver++": ("x_0", 0.0),
    "sde-dpmsolver++": ("x_0", 1.0),
    "dpmsolver": ("eps", 0.0),
    "sde-dpmsolver": ("eps", 1.0),
    "deis": ("x_0", 0.0),
}
SINGLESTEP = {name: ALGORITHMS[name] for name in ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "deis")}
EDM = {name: ALGORITHMS[name] for name in ("dpmsolver++", "sde-dpmsolver++", "deis")}
# solver_type; those of the other classes mean the default.
METHODS: dict[str, Method] = {
    "midpoint": "midpoint",
    "heun": "heun",
    "logrho": "midpoint",
    "bh1": "midpoint",
    "bh2": "midpoint",
}


def _algorithm(config: Config, algorithms: dict[str, tuple[Predict, float]]) -> tuple[Predict, float]:
    """What is integrated, and eta.

    Raises:
      ValueError: unknown algorithm_type; one that cannot end at sigma = 0.
    """
    name = config["algorithm_type"]
    predict, eta = choose("algorithm_type", name, algorithms)
    if name not in ("dpmsolver++", "sde-dpmsolver++") and config.get("final_sigmas_type") == "zero":
        raise ValueError(f"algorithm_type {name!r} needs final_sigmas_type 'sigma_min', got 'zero'")
    return predict, eta


def _multistep(
    config: Config,
    grid: Grid,
    predict: Predict,
    eta: float,
    *,
    no_third: tuple[str, ...],
    repeats: bool,
    start: int = 0,
) -> Any:
    """The table of `dpm_solver`, or an error where diffusers' is not finite.

    Args:
      config: settings, complete.
      grid: where.
      predict, eta: of the algorithm.
      no_third: algorithms for which diffusers has no third order.
      repeats: the last two levels are the same in float32.
      start: the step at which it begins, as in `start_at`.

    Raises:
      ValueError: steps that diffusers cannot do.
    """
    n, order = grid.rest(start).num_steps, config["solver_order"]
    method = choose("solver_type", config["solver_type"], METHODS)
    lower = config["lower_order_final"] and grid.num_steps < 15
    third: ThirdOrder = "diffusers_sde" if eta else "reference"
    if order in (1, 2, 3):  # any other is refused by the sampler
        clean = config["euler_at_final"] or grid.levels[-1].sigma == 0
        orders = step_orders(n, order, lower_order_final=lower, clean=clean)
        if 3 in orders and config["algorithm_type"] in no_third:
            raise ValueError(f"diffusers has no third order for algorithm_type {config['algorithm_type']!r}")
        if repeats and (orders[-1] == 3 or (orders[-1] == 2 and method == "heun")):
            raise ValueError(
                f"the last step has length 0 and order {orders[-1]}, where diffusers gives NaN: use final_sigmas_type "
                "'zero' or euler_at_final"
            )
    make = lambda grid: dpm_solver(
        grid,
        order=order,
        predict=predict,
        eta=eta,
        method=method,
        third_order=third,
        lower_order_final=lower,
        euler_at_final=config["euler_at_final"],
    )
    return start_at(make, grid, start)


def _repeats(config: Config, grid: Grid) -> bool:
    """Whether diffusers' last step has length 0 in float32: Lu's sigmas miss the lowest one by rounding."""
    if not grid.idle_end:
        return False
    if sigma_spacing(config) != "use_lu_lambdas":
        return True
    first = float32.sigmas(config)[0]
    return bool(float32.log_snr(float(np.exp(float(np.log(first))))) == float32.log_snr(float(first)))


def _dpm_multistep(config: Config, num_steps: int | None, *, timesteps: Any = None, start: int = 0) -> Preset:
    predict, eta = _algorithm(config, ALGORITHMS)
    cosine = config["beta_schedule"] == "squaredcos_cap_v2"
    last = last_of(config)
    rounding = "down" if cosine else "nearest"
    grid = grid_of(config, num_steps, timesteps, last=last, last_of_sigmas=last, karras_rounding=rounding, start=start)
    repeats = _repeats(config, grid)
    table = _multistep(config, grid, predict, eta, no_third=("sde-dpmsolver",), repeats=repeats, start=start)
    return Preset(table, denoiser_of(config))


def _dpm_singlestep(config: Config, num_steps: int | None, *, timesteps: Any = None, start: int = 0) -> Preset:
    predict, eta = _algorithm(config, SINGLESTEP)
    if predict == "eps" and config["thresholding"]:
        raise ValueError("thresholding with algorithm_type 'dpmsolver' fails in diffusers: use 'dpmsolver++'")
    last = last_of(config)
    levels = grid_of(config, num_steps, timesteps, last=last, last_of_sigmas=last, start=start)
    order = config["solver_order"]
    # diffusers switches lower_order_final on where it cannot do without.
    whole = order in (1, 2, 3) and levels.num_steps % order == 0 and last != "clean"
    make = lambda grid: dpm_solver_singlestep(
        grid,
        order=order,
        predict=predict,
        eta=eta,
        method=choose("solver_type", config["solver_type"], METHODS),
        third_order="diffusers_sde" if eta else "exact",
        lower_order_final=config["lower_order_final"] or not whole,
        num_before=levels.num_steps - grid.num_steps,
    )
    return Preset(start_at(make, levels, start), denoiser_of(config))


def _dpm_inverse(config: Config, num_steps: int | None) -> Preset:
    predict, eta = _algorithm(config, ALGORITHMS)
    if eta:
        raise ValueError(f"algorithm_type {config['algorithm_type']!r} has no inverse: diffusers gives NaN")
    grid = _ascent(config, num_steps)
    return Preset(_multistep(config, grid, predict, 0.0, no_third=(), repeats=grid.idle_end), denoiser_of(config))


def _ascent(config: Config, num_steps: int | None) -> dpm_grids.Ascent:
    """Levels of the inverse class: those of the others in the opposite order, up to the noisiest.

    Source: diffusers 0.42.1, where of equal times in a row the second is dropped, but not its sigma.
    """
    schedule, spacing = checked_schedule(config), sigma_spacing(config)
    if num_steps is None:
        raise ValueError("num_steps must be given")
    if spacing is None:
        noisiest = dpm_grids.kept_timesteps(schedule, float(config["lambda_min_clipped"])) - 1
        levels = dpm_grids.levels_at(schedule, _upward(config, noisiest, num_steps))
        end = dpm_grids.levels_at(schedule, [noisiest])[0]
    else:
        sigmas, positions = sigmas_of(config, schedule, spacing, num_steps, upward=True)
        # Karras' times are integers before equal ones are looked for, the others' after.
        times = np.trunc(np.unique(np.round(positions) if spacing == "use_karras_sigmas" else positions))
        levels = [sigma_grids.scaled(float(s), float(t)) for s, t in zip(sigmas, times, strict=False)]
        end = sigma_grids.scaled(float(sigmas[min(len(levels), num_steps - 1)]), levels[-1].time)
    refuse_repeated_start([level.time for level in levels])
    idle = sigma_grids.ratio(end) == sigma_grids.ratio(levels[-1])
    return dpm_grids.Ascent(rounded(config, [*levels, end]), idle_end=idle)


def _upward(config: Config, noisiest: int, num_steps: int) -> np.ndarray:
    spacing = config["timestep_spacing"]
    if spacing == "linspace":
        return np.round(np.linspace(0, noisiest, num_steps + 1))[:-1].astype(int)
    if spacing == "leading":
        return np.arange(num_steps) * ((noisiest + 1) // (num_steps + 1)) + config["steps_offset"]
    if spacing == "trailing":
        return common.trailing_timesteps(noisiest + 1, config["num_train_timesteps"], num_steps)[::-1]
    raise unknown("timestep_spacing", spacing, ("linspace", "leading", "trailing"))


def _edm_multistep(config: Config, num_steps: int | None, *, start: int = 0) -> Preset:
    predict, eta = _algorithm(config, EDM)
    low, high, data = config["sigma_min"], config["sigma_max"], config["sigma_data"]
    if num_steps is None:
        raise ValueError("num_steps must be given")
    sigmas = {
        "karras": lambda: sigma_grids.karras_sigmas(num_steps, low, high, rho=config["rho"]),
        "exponential": lambda: sigma_grids.exponential_sigmas(num_steps, low, high),
    }
    values = choose("sigma_schedule", config["sigma_schedule"], sigmas)()
    if num_steps == 1 and config["sigma_schedule"] == "exponential":
        values = np.array([low])  # torch.linspace of one number, which diffusers then reverses
    levels = [sigma_grids.scaled(float(sigma), log(sigma) / 4, data) for sigma in values]
    end = low if last_of(config) == "first" else 0.0
    repeats = abs(end / float(values[-1]) - 1) < 1e-6
    if repeats:  # no noisier than the one before, whatever the powers' rounding
        end = min(end, sigma_grids.ratio(levels[-1]) * (1 - 4e-16))
    grid = Grid((*levels, Level(0.0, 1.0, end)), idle_end=repeats)
    refuse_repeated_start([level.time for level in levels], start)
    table = _multistep(config, grid, predict, eta, no_third=("sde-dpmsolver++",), repeats=repeats, start=start)
    prediction = choose("prediction_type", config["prediction_type"], EDM_PREDICTIONS)

    def wrap(model_fn: ModelFn) -> Denoise:
        denoise = preconditioned(model_fn, data, prediction)
        if not config["thresholding"]:
            return denoise
        return thresholded(denoise, config["dynamic_thresholding_ratio"], config["sample_max_value"])

    # X is the network's input; diffusers starts from N(0, sigma_max^2 + 1), whatever sigma_data.
    return Preset(table._replace(init=hypot(high, 1) / hypot(float(values[0]), data)), wrap)


MULTISTEP = {
    **SHARED,
    **SPACED,
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "euler_at_final": False,
    "lambda_min_clipped": -inf,
    "variance_type": None,
}
EDM_DEFAULTS = {
    **common.EDM,
    "solver_order": 2,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "lower_order_final": True,
    "euler_at_final": False,
}
SINGLESTEP_DEFAULTS = {
    **SHARED,
    **SHIFTED,
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "lower_order_final": False,
    "final_sigmas_type": "zero",
    "lambda_min_clipped": -inf,
    "variance_type": None,
}
CLASSES = {
    "DPMSolverMultistepScheduler": (
        _dpm_multistep,
        {
            **MULTISTEP,
            **SHIFTED,
            "use_lu_lambdas": False,
            "final_sigmas_type": "zero",
            "rescale_betas_zero_snr": False,
        },
    ),
    "DPMSolverMultistepInverseScheduler": (_dpm_inverse, MULTISTEP),
    "DPMSolverSinglestepScheduler": (_dpm_singlestep, SINGLESTEP_DEFAULTS),
    "EDMDPMSolverMultistepScheduler": (_edm_multistep, EDM_DEFAULTS),
    **adams.CLASSES,
}
