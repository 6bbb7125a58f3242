"""Random configurations of every scheduler class of diffusers: settings, steps and options, from a seed."""

import inspect
from collections.abc import Callable, Mapping
from math import inf
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.samplers.configs import CLASSES

Random = np.random.Generator


class Case(NamedTuple):
    """What is asked of a class.

    Attributes:
      name: of the class.
      settings: of its constructor, where not its defaults.
      num_steps: None where a list of timesteps or sigmas is in set_options.
      set_options: of set_timesteps.
      step_options: of step.
      start: the step at which it begins.
    """

    name: str
    settings: dict[str, Any]
    num_steps: int | None
    set_options: dict[str, Any]
    step_options: dict[str, Any]
    start: int = 0

    def __str__(self) -> str:
        said = {**self.settings, "num_steps": self.num_steps, **self.set_options, **self.step_options}
        said |= {"start": self.start} if self.start else {}
        short = lambda value: (
            f"[{len(value)} numbers]" if isinstance(value, list | np.ndarray) and len(value) > 16 else value
        )
        return f"{self.name}({', '.join(f'{key}={short(value)}' for key, value in said.items())})"


# DPMSolverSDEScheduler needs torchsde, whose Brownian tree replaced noise cannot stand in for; the others are not told
# enough by a loop over step().
UNDRAWN = ("DPMSolverSDEScheduler", "UnCLIPScheduler", "ScoreSdeVeScheduler")
NAMES = tuple(name for name in CLASSES if name not in UNDRAWN)
SIGMA_FLAGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
ALGORITHMS = {
    "DPMSolverMultistepScheduler": ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver", "deis"),
    "DPMSolverMultistepInverseScheduler": ("dpmsolver++", "dpmsolver++", "dpmsolver", "sde-dpmsolver++", "deis"),
    "DPMSolverSinglestepScheduler": ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "deis"),
    "EDMDPMSolverMultistepScheduler": ("dpmsolver++", "sde-dpmsolver++", "deis"),
    "DEISMultistepScheduler": ("deis", "dpmsolver++"),
    "SASolverScheduler": ("data_prediction", "noise_prediction"),
}
SOLVER_TYPES = {
    "UniPCMultistepScheduler": ("bh1", "bh2", "midpoint"),
    "DEISMultistepScheduler": ("logrho", "midpoint"),
}
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range", "fixed_large_log")


def one(random: Random, values: Any) -> Any:
    """One of these."""
    return values[random.integers(len(values))]


def betas(random: Random, length: int) -> list[float]:
    """A list of betas that no formula gives: noise of one in five around a random power of a line."""
    total = random.uniform(3, 14)
    line = np.linspace(0.02, 1, length) ** random.uniform(0.5, 3) * random.uniform(0.8, 1.2, length)
    return np.minimum(line * total / line.sum(), 0.9).tolist()


def length_and_betas(random: Random, keys: Mapping[str, Any]) -> dict[str, Any]:
    """num_train_timesteps and its betas."""
    length = int(one(random, (1000, 1000, 1000, 500, 200, 100, int(random.integers(20, 1200)))))
    found: dict[str, Any] = {"num_train_timesteps": length} if length != 1000 or random.random() < 0.3 else {}
    if "beta_start" not in keys:  # IPNDM's own "betas" are its sigmas, from 1 to 0
        own = np.sort(random.uniform(0.01, 0.99, random.integers(2, 9)))[::-1].tolist()
        return (
            {**found, "trained_betas": [1.0, *own, 0.0]} if "trained_betas" in keys and random.random() < 0.2 else found
        )
    if random.random() < 0.2:
        return {**found, "trained_betas": betas(random, length)}
    kinds = ("linear", "linear", "scaled_linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "exp", "laplace")
    if random.random() < 0.7:
        found["beta_schedule"] = one(random, kinds[: 5 if random.random() < 0.8 else None])
    if random.random() < 0.5:
        found["beta_start"] = float(10 ** random.uniform(-5, -3))
        found["beta_end"] = float(min(random.uniform(6, 28) / length, 0.6))
    return found


def value(random: Random, name: str, key: str, length: int) -> Any:
    """A value of a setting that has a few."""
    values: dict[str, tuple[Any, ...]] = {
        "prediction_type": ("epsilon", "v_prediction", "sample"),
        "timestep_spacing": ("leading", "linspace", "trailing"),
        "steps_offset": (0, 1, 1, 2),
        "clip_sample_range": (1.0, 0.7, 2.0),
        "dynamic_thresholding_ratio": (0.995, 0.9, 0.7),
        "sample_max_value": (1.0, 1.5, 0.8),
        "variance_type": (None, "learned", "learned_range") if name.startswith(("DPMS", "SAS")) else VARIANCES,
        "final_sigmas_type": ("zero", "sigma_min"),
        "solver_order": (1, 2, 3),
        "predictor_order": (1, 2, 3),
        "corrector_order": (0, 1, 2, 3),
        "algorithm_type": ALGORITHMS.get(name, ()),
        "solver_type": SOLVER_TYPES.get(name, ("midpoint", "heun", "bh1")),
        "lambda_min_clipped": (-inf, -5.1, -3.0),
        "disable_corrector": ([], [0], [0, 1]),
        "interpolation_type": ("linear", "log_linear"),
        "timestep_type": ("discrete", "continuous"),
        "sigma_schedule": ("karras", "exponential"),
        "time_shift_type": ("exponential",),
        "timestep_scaling": (10.0, 3.0),
        "original_inference_steps": (50, 20, 100, length // 2),
        "eta": (0.0, 0.5, 1.0),
        "s_noise": (1.0, 1.01),
    }
    if key in ("sigma_min", "sigma_max", "sigma_data", "rho"):
        low, high = {"sigma_min": (0.005, 0.1), "sigma_max": (5, 120), "sigma_data": (0.3, 1.2), "rho": (3, 9)}[key]
        return float(random.uniform(low, high))
    return one(random, values[key])


LEFT = {*SIGMA_FLAGS, "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"}
LEFT |= {"use_flow_sigmas", "flow_shift", "use_dynamic_shifting", "solver_p", "shift_terminal", "tau_func"}
LEFT |= {"set_alpha_to_zero"}


def settings_of(random: Random, name: str) -> dict[str, Any]:
    """Random settings of a class: each is left out half of the time."""
    keys = CLASSES[name][1]
    found = length_and_betas(random, keys)
    if name == "RePaintScheduler" and "trained_betas" in found:
        found["trained_betas"] = np.asarray(found["trained_betas"], np.float32)  # the class takes no list
    length = found.get("num_train_timesteps", 1000)
    for key, default in keys.items():
        if key not in LEFT and random.random() < 0.5:
            if isinstance(default, bool):
                likely = {"thresholding": 0.4, "rescale_betas_zero_snr": 0.4}.get(key, 0.5)
                found[key] = bool(random.random() < likely)
            else:
                found[key] = value(random, name, key, length)
    flags = [flag for flag in SIGMA_FLAGS if flag in keys]
    if flags and random.random() < 0.5:
        found[one(random, flags)] = True
        if random.random() < 0.05:
            found[one(random, flags)] = True
    return found


def listed(random: Random, length: int) -> list[int]:
    """2 to 8 decreasing timesteps."""
    chosen = random.choice(length, min(int(random.integers(2, 9)), length), replace=False)
    return sorted((int(t) for t in chosen), reverse=True)


def churn(random: Random) -> dict[str, Any]:
    """Karras' churn, of Euler's steps."""
    if random.random() < 0.6:
        return {}
    limits = {"s_tmin": float(random.uniform(0, 0.5)), "s_tmax": float(random.uniform(2, 80)), "s_noise": 1.01}
    return {"s_churn": float(random.uniform(0.5, 8)), **(limits if random.random() < 0.5 else {})}


# name: (random, settings, T) -> (options of set_timesteps, options of step). A list in the first replaces num_steps.
Options = Callable[[Random, Mapping[str, Any], int], tuple[dict[str, Any], dict[str, Any]]]


def _timesteps(random: Random, settings: Mapping[str, Any], length: int) -> tuple[dict, dict]:
    return ({"timesteps": listed(random, length)} if random.random() < 0.2 else {}), {}


def _ddim(random: Random, settings: Mapping[str, Any], length: int) -> tuple[dict, dict]:
    options = {"eta": one(random, (0.0, 0.3, 0.7, 1.0)), "use_clipped_model_output": bool(random.random() < 0.5)}
    return {}, (options if random.random() < 0.6 else {})


def _distilled(random: Random, settings: Mapping[str, Any], length: int) -> tuple[dict, dict]:
    known = settings.get("original_inference_steps", 50)
    options: dict[str, Any] = {}
    if random.random() < 0.2:
        options["original_inference_steps"] = known = int(random.integers(10, 60))
    if random.random() < 0.2:
        options["strength"] = float(random.uniform(0.3, 1))
    if random.random() < 0.2:
        ladder = np.arange(1, known + 1) * (length // max(known, 1)) - 1
        return {"timesteps": [int(t) for t in ladder[::-1][:: max(1, known // 6)]]}, {}
    return options, {}


def _tcd(random: Random, settings: Mapping[str, Any], length: int) -> tuple[dict, dict]:
    options, _ = _distilled(random, settings, length)
    return options, ({"eta": one(random, (0.0, 0.5, 1.0))} if random.random() < 0.6 else {})


def _euler(random: Random, settings: Mapping[str, Any], length: int) -> tuple[dict, dict]:
    chosen, options = random.random(), {}
    if chosen < 0.15:
        options = {"timesteps": listed(random, length)}
    elif chosen < 0.3:
        options = {"sigmas": [*np.sort(random.uniform(0.05, 12, random.integers(2, 9)))[::-1].tolist(), 0.0]}
    return options, churn(random)


OPTIONS: dict[str, Options] = {
    **dict.fromkeys(("DDPMScheduler", "DDPMParallelScheduler", "HeunDiscreteScheduler"), _timesteps),
    **dict.fromkeys(("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"), _timesteps),
    "CMStochasticIterativeScheduler": _timesteps,
    **dict.fromkeys(("DDIMScheduler", "DDIMParallelScheduler"), _ddim),
    "LCMScheduler": _distilled,
    "TCDScheduler": _tcd,
    "EulerDiscreteScheduler": _euler,
    "EDMEulerScheduler": lambda random, settings, length: ({}, churn(random)),
    "LMSDiscreteScheduler": lambda random, settings, length: ({}, {"order": int(random.integers(1, 5))}),
    # Without jumps back, after which one draw of noise would be two things.
    "RePaintScheduler": lambda random, settings, length: ({"jump_length": 1, "jump_n_sample": 1}, {}),
}


def draw(seed: int, index: int) -> Case:
    """Case `index` of a seed: the classes take turns."""
    random = np.random.default_rng([seed, index])
    name = NAMES[index % len(NAMES)]
    settings = settings_of(random, name)
    length = settings.get("num_train_timesteps", CLASSES[name][1]["num_train_timesteps"])
    none: Options = lambda random, settings, length: ({}, {})
    set_options, step_options = OPTIONS.get(name, none)(random, settings, length)
    steps = int(one(random, (*range(1, 13), *range(2, 13), 16, 20)))
    if settings.get("timestep_spacing") == "trailing" and random.random() < 0.1:
        steps = 61  # diffusers has one timestep more
    given = {"timesteps", "sigmas"} & set_options.keys()
    number = None if given else min(steps, length)
    ways = inspect.signature(CLASSES[name][0]).parameters
    start = int(random.integers(0, number)) if number and "start" in ways and random.random() < 0.3 else 0
    return Case(name, settings, number, set_options, step_options, start)
