"""diffusers' UniPC, DEIS and SA-Solver schedulers: Adams methods in the log-SNR."""

from math import inf
from typing import Any

from ddpm_jax.names import choose
from ddpm_jax.samplers.configs.common import SPACED, Config, Preset
from ddpm_jax.samplers.configs.dpm_common import SHARED, SHIFTED, denoiser_of, grid_of, last_of
from ddpm_jax.samplers.families.deis import deis
from ddpm_jax.samplers.families.exponential import Predict
from ddpm_jax.samplers.families.sa_solver import sa_solver, tau_of_stable_diffusion
from ddpm_jax.samplers.families.unipc import Variant, unipc
from ddpm_jax.samplers.table import start_at

# solver_type; those of the other classes mean the default.
VARIANTS: dict[str, Variant] = {"bh1": "bh1", "bh2": "bh2", "midpoint": "bh2", "heun": "bh2", "logrho": "bh2"}
DEIS_ALGORITHMS = {"deis": None, "dpmsolver": None, "dpmsolver++": None}
DEIS_TYPES = {"logrho": None, "midpoint": None, "heun": None, "bh1": None, "bh2": None}
SA_ALGORITHMS: dict[str, Predict] = {"data_prediction": "x_0", "noise_prediction": "eps"}


def _unipc(config: Config, num_steps: int | None, *, start: int = 0) -> Preset:
    variant = choose("solver_type", config["solver_type"], VARIANTS)
    last = last_of(config)
    grid = grid_of(config, num_steps, last=last, last_of_sigmas="clean" if last == "clean" else "same", start=start)
    _refuse_unipc(config, variant, grid.num_steps)
    if grid.idle_end and config["solver_order"] > 2 and not config["lower_order_final"]:
        raise ValueError(
            "the last step has length 0, where diffusers gives NaN for solver_order 3: use lower_order_final"
        )
    make = lambda rest: unipc(
        rest,
        order=config["solver_order"],
        variant=variant,
        predict="x_0" if config["predict_x0"] else "eps",
        disable_corrector=tuple(step - grid.num_steps + rest.num_steps for step in config["disable_corrector"]),
        lower_order_final=config["lower_order_final"],
    )
    table = start_at(make, grid, start)
    # With eps as what is integrated diffusers does not threshold.
    return Preset(table, denoiser_of(config, threshold=config["predict_x0"]))


def _refuse_unipc(config: Config, variant: Variant, num_steps: int) -> None:
    """Raises:
    ValueError: settings with which diffusers fails or gives NaN, or that belong to flow matching.
    """
    if config["solver_p"] is not None:
        raise ValueError(
            f"solver_p must be None, another scheduler as predictor is not supported: {config['solver_p']}"
        )
    if config["shift_terminal"] is not None:
        raise ValueError(f"shift_terminal belongs to flow matching and must be None, got {config['shift_terminal']}")
    if config["final_sigmas_type"] != "zero":
        return
    for name, wrong in (
        ("solver_type 'bh1'", variant == "bh1"),
        ("predict_x0 False", not config["predict_x0"]),
        ("lower_order_final False", min(config["solver_order"], num_steps) > 1 and not config["lower_order_final"]),
    ):
        if wrong:
            raise ValueError(
                f"{name} with final_sigmas_type 'zero' gives NaN in diffusers: use final_sigmas_type 'sigma_min'"
            )


def _deis(config: Config, num_steps: int | None, *, start: int = 0) -> Preset:
    choose("algorithm_type", config["algorithm_type"], DEIS_ALGORITHMS)
    choose("solver_type", config["solver_type"], DEIS_TYPES)
    grid = grid_of(config, num_steps, start=start)
    lower = config["lower_order_final"] and grid.num_steps < 15
    make = lambda grid: deis(grid, order=config["solver_order"], lower_order_final=lower)
    return Preset(start_at(make, grid, start), denoiser_of(config))


def _sa_solver(config: Config, num_steps: int | None, *, start: int = 0) -> Preset:
    predict = choose("algorithm_type", config["algorithm_type"], SA_ALGORITHMS)
    if predict == "eps" and config["thresholding"]:
        raise ValueError(
            "thresholding with algorithm_type 'noise_prediction' fails in diffusers: use 'data_prediction'"
        )
    if config["variance_type"] in ("learned", "learned_range") and config["prediction_type"] == "epsilon":
        raise ValueError(
            f"variance_type {config['variance_type']!r} fails in diffusers' SASolverScheduler, which draws noise for "
            "the variance's channels as well: use another class"
        )
    make = lambda grid: sa_solver(
        grid,
        predictor_order=config["predictor_order"],
        corrector_order=config["corrector_order"],
        predict=predict,
        tau=_tau(config["tau_func"]),
        lower_order_final=config["lower_order_final"],
    )
    return Preset(start_at(make, grid_of(config, num_steps, start=start), start), denoiser_of(config))


def _tau(tau_func: Any) -> Any:
    if tau_func is None:
        return tau_of_stable_diffusion
    if not callable(tau_func):
        raise ValueError(f"tau_func must be None or a function of the timestep, got {tau_func!r}")
    return tau_func


CLASSES = {
    "UniPCMultistepScheduler": (
        _unipc,
        {
            **SHARED,
            **SPACED,
            **SHIFTED,
            "solver_order": 2,
            "predict_x0": True,
            "solver_type": "bh2",
            "disable_corrector": (),
            "solver_p": None,
            "final_sigmas_type": "zero",
            "rescale_betas_zero_snr": False,
            "sigma_min": None,
            "sigma_max": None,
            "shift_terminal": None,
        },
    ),
    "DEISMultistepScheduler": (
        _deis,
        {**SHARED, **SPACED, **SHIFTED, "solver_order": 2, "algorithm_type": "deis", "solver_type": "logrho"},
    ),
    "SASolverScheduler": (
        _sa_solver,
        {
            **SHARED,
            **SPACED,
            "predictor_order": 2,
            "corrector_order": 2,
            "tau_func": None,
            "algorithm_type": "data_prediction",
            "lambda_min_clipped": -inf,
            "variance_type": None,
        },
    ),
}
