"""Every sampler of the catalogue, as a table on its own grid, beside the class of diffusers that is meant to be it."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.samplers import grids
from ddpm_jax.samplers.catalogue import CATALOGUE
from ddpm_jax.samplers.grids import dpm_grids
from ddpm_jax.tools.parity import mixture
from ddpm_jax.tools.parity.conventions import CONVENTIONS
from ddpm_jax.tools.parity.mixture import Answer
from ddpm_jax.tools.parity.ours import Setup, calls
from ddpm_jax.tools.parity.results import Difference, Result, along, compared, not_compared
from ddpm_jax.tools.parity.search import explained
from ddpm_jax.tools.parity.theirs import Calls, Libraries, set_timesteps
from ddpm_jax.tools.parity.theirs import calls as their_calls

GROUP = "samplers"
TOLERANCE = 1e-4  # diffusers computes in float32
NUM_STEPS = 10
EPSILON = 2.0**-24  # of float32
LINEAR = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


class Case(NamedTuple):
    """A class of diffusers, set up to be a sampler of the catalogue.

    Attributes:
      scheduler: the class.
      settings: of it, beside LINEAR.
      setup: what of ours; the catalogue's sampler on its own grid, if empty.
      listed: the class is given our timesteps, rather than finding its own.
      step_options: of scheduler.step.
    """

    scheduler: str
    settings: Mapping[str, Any] = {}
    setup: Mapping[str, Any] = {}
    listed: bool = False
    step_options: Mapping[str, Any] = {}


UNCLIPPED = {"clip_sample": False}
KARRAS, TRAILING, SIGMA_MIN = (
    {"use_karras_sigmas": True},
    {"timestep_spacing": "trailing"},
    {"final_sigmas_type": "sigma_min"},
)
LEADING = {"spread": grids.leading}
SINGLESTEP, MULTISTEP = "DPMSolverSinglestepScheduler", "DPMSolverMultistepScheduler"
CASES: dict[str, Case] = {
    "ddpm": Case("DDPMScheduler", UNCLIPPED | {"variance_type": "fixed_large"}, listed=True),
    "ddpm_large": Case("DDPMScheduler", UNCLIPPED | {"variance_type": "fixed_large"}, listed=True),
    "ddpm_small": Case("DDPMScheduler", UNCLIPPED | {"variance_type": "fixed_small"}, listed=True),
    **{
        f"ddpm_{law}": Case("DDPMScheduler", UNCLIPPED | {"variance_type": law}, {"variance": law}, listed=True)
        for law in ("learned", "learned_range")
    },
    "ddim": Case("DDIMScheduler", UNCLIPPED, LEADING),
    "ddim_eta1": Case("DDIMScheduler", UNCLIPPED, LEADING, step_options={"eta": 1.0}),
    "plms": Case("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}, LEADING),
    "pndm": Case("PNDMScheduler", {"skip_prk_steps": False, "set_alpha_to_one": True}, LEADING),
    "deis": Case("DEISMultistepScheduler", TRAILING | {"solver_order": 3}),
    "euler": Case("EulerDiscreteScheduler", KARRAS),
    "heun": Case("HeunDiscreteScheduler", KARRAS),
    "lms": Case("LMSDiscreteScheduler", KARRAS),
    "dpm2": Case("KDPM2DiscreteScheduler", KARRAS),
    "dpm2_ancestral": Case("KDPM2AncestralDiscreteScheduler", KARRAS),
    "euler_ancestral": Case("EulerAncestralDiscreteScheduler", setup={"spread": grids.linspace}),
    "dpm_solver_2": Case(SINGLESTEP, {"algorithm_type": "dpmsolver", "solver_order": 2} | SIGMA_MIN, listed=True),
    "dpm_solver_3": Case(SINGLESTEP, {"algorithm_type": "dpmsolver", "solver_order": 3} | SIGMA_MIN, listed=True),
    "dpm_solver_pp_2s": Case(SINGLESTEP, {"solver_order": 2}, listed=True),
    "dpm_solver_pp_2m": Case(MULTISTEP, {"solver_order": 2}, listed=True),
    "dpm_solver_pp_3m": Case(MULTISTEP, {"solver_order": 3}, listed=True),
    "dpm_solver_pp_3m_corrected": Case(MULTISTEP, {"solver_order": 3}, listed=True),
    "dpm_solver_pp_2m_sde": Case(MULTISTEP, {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}, listed=True),
    "dpm_solver_pp_3m_sde": Case(
        MULTISTEP,
        {"solver_order": 3, "algorithm_type": "sde-dpmsolver++", "solver_type": "heun", "lower_order_final": False},
        {"spread": dpm_grids.trailing},
        listed=True,
    ),
    "unipc": Case("UniPCMultistepScheduler", TRAILING | {"solver_order": 2}),
    "unipc_3": Case("UniPCMultistepScheduler", TRAILING | {"solver_order": 3}),
    "sa_solver": Case("SASolverScheduler", TRAILING),
}
# What no class of diffusers can be compared with, and what it is checked against instead.
ELSEWHERE = {
    **dict.fromkeys(
        ("fastdpm_step", "fastdpm_var"),
        "no class in diffusers; against FastDPM's recorded loops in tests/samplers/test_other_loops.py",
    ),
    "ipndm": "the class of diffusers has one grid, which is none of the catalogue's; as a preset on that one below",
    "dpm_solver_pp_2s_ancestral": "no class in diffusers (k-diffusion's); against closed forms in tests/samplers",
    "dpm_solver_pp_sde": "the class of diffusers needs torchsde and its Brownian tree, which replaced noise cannot "
    "stand in for; against k-diffusion's step along a Brownian path in tests/samplers/test_dpm_sde.py",
}


def noise_of(num_calls: int, seed: int = 0, shape: tuple[int, ...] = mixture.SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """x_T and one z for every call, standard normal, float32 numbers as float64."""
    draws = np.random.default_rng(seed).standard_normal((num_calls + 1, *shape)).astype(np.float32)
    return draws[0].astype(np.float64), draws[1:].astype(np.float64)


def compare(libraries: Libraries) -> Iterator[Result]:
    """A line for every sampler of the catalogue."""
    for name in CATALOGUE:
        if name in ELSEWHERE:
            yield not_compared(GROUP, name, "", ELSEWHERE[name])
        else:
            yield compare_one(libraries, name, CASES[name])


def compare_one(libraries: Libraries, name: str, case: Case, num_steps: int = NUM_STEPS) -> Result:
    """One sampler of the catalogue against its case."""
    setup = Setup(name, num_steps, **case.setup)
    scheduler = getattr(libraries.diffusers, case.scheduler)(**{**LINEAR, **case.settings})
    times = [int(s.time) for s, _ in setup.levels().steps()] if case.listed else None
    set_timesteps(scheduler, num_steps, times)
    settings = ", ".join(f"{key}={value}" for key, value in {**case.settings, **case.step_options}.items())
    against = f"{case.scheduler}({settings})"
    return against_scheduler(
        libraries, GROUP, f"{name}, {num_steps} steps", against, setup, scheduler, case.step_options
    )


def against_scheduler(
    libraries: Libraries,
    group: str,
    item: str,
    against: str,
    setup: Setup,
    scheduler: Any,
    step_options: Mapping[str, Any] | None = None,
    largest: int = 2,
) -> Result:
    """Our setup beside a scheduler whose timesteps are set; where they differ, what explains it.

    Args:
      libraries: theirs.
      group, item, against: of the result.
      setup: ours.
      scheduler: theirs.
      step_options: of scheduler.step.
      largest: how many conventions at once may explain a difference.
    """
    table = scheduler.alphas_cumprod.double().numpy()
    x_T, noise = noise_of(len(scheduler.timesteps))
    kind = scheduler.config.prediction_type
    theirs = their_calls(
        libraries.torch, scheduler, answer_of(table, setup, kind, theirs=True), x_T, noise, step_options
    )

    def difference(changed: Setup) -> Difference:
        preset = changed.preset()
        rows = preset.table.rows
        # Told other times, a network cannot answer the same: no need to run it.
        if len(rows.time) != len(theirs.times):
            return Difference(float("inf"), min(len(rows.time), len(theirs.times)))
        answer = answer_of(table, changed, kind)
        found: Calls = calls(preset, answer, x_T, noise)
        return along(found.xs, theirs.xs, TOLERANCE)

    def quick(changed: Setup) -> float:
        times = changed.preset().table.rows.time
        if len(times) != len(theirs.times) or np.abs(np.asarray(times) - theirs.times).max() > 0.51:
            return float("inf")
        return difference(changed).largest

    result = compared(group, item, against, difference(setup), TOLERANCE)
    return explained(result, setup, CONVENTIONS, quick, largest)


def by_rounding(result: Result, theirs: Calls, again: Callable[[Callable[[Answer], Answer]], Calls]) -> Result:
    """A difference that theirs shows to itself, when the network's answers are rounded once more, is explained by that.

    Args:
      result: a difference that no convention explains.
      theirs: their run.
      again: their run with the network changed.
    """
    generator = np.random.default_rng(2)

    def rounded(answer: Answer) -> Answer:
        def once_more(x: np.ndarray, time: float) -> np.ndarray:
            found = answer(x, time)
            return found * (1 + EPSILON * generator.standard_normal(found.shape))

        return once_more

    moved = along(again(rounded).xs, theirs.xs, TOLERANCE).largest
    if result.difference is None or result.difference > 10 * moved:
        return result
    note = f"rounding: theirs moves by {moved:.1e} when the network's answers are rounded once more"
    return dataclasses.replace(result, verdict="explained", note=note)


OUTPUTS = {"epsilon": "eps", "sample": "x_0", "v_prediction": "v"}
LOG_VARIANCE: Callable[[np.ndarray], np.ndarray] = lambda value: 2 * value - 6


def answer_of(alphas_cumprod: np.ndarray, setup: Setup, kind: str, *, theirs: bool = False) -> Answer:
    """The network as a side reads it: what it was trained to predict is theirs to say (`kind`)."""
    answer = mixture.at_table(alphas_cumprod, OUTPUTS[kind])
    if setup.variance == "learned":  # the logarithm of the variance for us, the variance itself for diffusers
        return mixture.with_variance(answer, (lambda value: np.exp(LOG_VARIANCE(value))) if theirs else LOG_VARIANCE)
    return mixture.with_variance(answer, lambda value: value) if setup.variance == "learned_range" else answer
