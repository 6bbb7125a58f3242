"""Samplers by name, each on a grid its authors use, and grids by name: what `ddpm-jax samplers` lists.

Where names are not enough, call the sampler: `samplers.unipc(sigma_grids.karras(schedule, 8, rho=5), order=3)`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ddpm_jax.names import choose
from ddpm_jax.samplers import grids
from ddpm_jax.samplers.families.ancestral import ddpm
from ddpm_jax.samplers.families.deis import deis
from ddpm_jax.samplers.families.dpm_sde import dpm_solver_sde
from ddpm_jax.samplers.families.dpm_solver import dpm_solver
from ddpm_jax.samplers.families.euler import euler, euler_ancestral
from ddpm_jax.samplers.families.heun import heun
from ddpm_jax.samplers.families.implicit import ddim
from ddpm_jax.samplers.families.ipndm import ipndm
from ddpm_jax.samplers.families.kdpm2 import kdpm2, kdpm2_ancestral
from ddpm_jax.samplers.families.lms import lms
from ddpm_jax.samplers.families.pndm import plms, pndm
from ddpm_jax.samplers.families.sa_solver import sa_solver
from ddpm_jax.samplers.families.singlestep import dpm_solver_2s_ancestral, dpm_solver_singlestep
from ddpm_jax.samplers.families.unipc import unipc
from ddpm_jax.samplers.grids import Grid, checked_steps, dpm_grids, fastdpm, sigma_grids
from ddpm_jax.samplers.table import Table, start_at
from ddpm_jax.schedules import Schedule

Spread = Callable[[Schedule, int], Grid]


class Entry(NamedTuple):
    """A sampler by name."""

    on: Callable[[Schedule, Grid], Table]
    spread: Spread  # its grid, where no other is asked for
    order: int  # of convergence, between levels above sigma = 0: see ORDERS
    stochastic: bool  # whether it draws noise
    source: str
    least: int = 1  # how few steps it can take
    variance: str | None = None  # what the network must have learned for it; None where any network will do


def _on(sampler: Callable[..., Table], **options: object) -> Callable[[Schedule, Grid], Table]:
    return lambda schedule, grid: sampler(grid, **options)


def _between(sampler: Callable[..., Table]) -> Callable[[Schedule, Grid], Table]:
    """For samplers that choose levels between those of the grid."""
    return lambda schedule, grid: sampler(grid, sigma_grids.discrete(schedule))


def _pndm(schedule: Schedule, grid: Grid) -> Table:
    return pndm(grid, middle=grids.halfway(schedule, grid)[:3])


SECTIONS, TRAILING, KARRAS = grids.sections, dpm_grids.trailing, sigma_grids.karras
HO, SONG = "Ho et al. 2020, arXiv:2006.11239", "Song et al. 2021, arXiv:2010.02502"
NICHOL = "Nichol & Dhariwal 2021, arXiv:2102.09672"
KONG, LIU = "Kong & Ping 2021, arXiv:2106.00132", "Liu et al. 2022, arXiv:2202.09778"
KARRAS_22, ZHANG = "Karras et al. 2022, arXiv:2206.00364", "Zhang & Chen 2022, arXiv:2204.13902"
LU, LU_PP = "Lu et al. 2022, arXiv:2206.00927", "Lu et al. 2022, arXiv:2211.01095"
ZHAO, XUE, CROWSON = "Zhao et al. 2023, arXiv:2302.04867", "Xue et al. 2023, arXiv:2309.05019", "Crowson, k-diffusion"

CATALOGUE = {
    "ddpm": Entry(_on(ddpm), SECTIONS, 1, True, HO),  # with the variance of the network, if that is known
    "ddpm_large": Entry(_on(ddpm, variance="fixed_large"), SECTIONS, 1, True, HO),
    "ddpm_small": Entry(_on(ddpm, variance="fixed_small"), SECTIONS, 1, True, HO),
    **{
        f"ddpm_{variance}": Entry(_on(ddpm, variance=variance), SECTIONS, 1, True, NICHOL, variance=variance)
        for variance in ("learned", "learned_range")
    },
    "ddim": Entry(_on(ddim), SECTIONS, 1, False, SONG),
    "ddim_eta1": Entry(_on(ddim, eta=1.0), SECTIONS, 1, True, SONG),
    "fastdpm_step": Entry(_on(ddim), fastdpm.step_grid, 1, False, KONG),
    "fastdpm_var": Entry(_on(ddim), fastdpm.var_grid, 1, False, KONG, least=2),
    "plms": Entry(_on(plms), SECTIONS, 2, False, LIU),
    "pndm": Entry(_pndm, SECTIONS, 2, False, LIU, least=4),
    "ipndm": Entry(_on(ipndm), SECTIONS, 4, False, ZHANG),
    "deis": Entry(_on(deis, order=3), TRAILING, 3, False, ZHANG),
    "euler": Entry(_on(euler), KARRAS, 1, False, KARRAS_22),
    "heun": Entry(_on(heun), KARRAS, 2, False, KARRAS_22),
    "lms": Entry(_on(lms), KARRAS, 4, False, CROWSON),
    "dpm2": Entry(_between(kdpm2), KARRAS, 2, False, KARRAS_22),
    "dpm2_ancestral": Entry(_between(kdpm2_ancestral), KARRAS, 1, True, CROWSON),
    "euler_ancestral": Entry(_on(euler_ancestral), KARRAS, 1, True, CROWSON),
    "dpm_solver_2": Entry(_on(dpm_solver_singlestep, predict="eps"), TRAILING, 2, False, LU),
    "dpm_solver_3": Entry(
        _on(dpm_solver_singlestep, order=3, predict="eps", method="midpoint", inner="heun"), TRAILING, 3, False, LU
    ),
    "dpm_solver_pp_2s": Entry(_on(dpm_solver_singlestep), TRAILING, 2, False, LU_PP),
    "dpm_solver_pp_2s_ancestral": Entry(_between(dpm_solver_2s_ancestral), KARRAS, 1, True, CROWSON),
    "dpm_solver_pp_sde": Entry(_between(dpm_solver_sde), KARRAS, 1, True, CROWSON),
    "dpm_solver_pp_2m": Entry(_on(dpm_solver), TRAILING, 2, False, LU_PP),
    "dpm_solver_pp_3m": Entry(_on(dpm_solver, order=3), TRAILING, 2, False, LU_PP),
    "dpm_solver_pp_3m_corrected": Entry(
        _on(dpm_solver, order=3, third_order="corrected"), TRAILING, 3, False, "docs/solver_orders.md"
    ),
    "dpm_solver_pp_2m_sde": Entry(_on(dpm_solver, eta=1.0), TRAILING, 1, True, LU_PP),
    "dpm_solver_pp_3m_sde": Entry(
        _on(dpm_solver, order=3, eta=1.0, method="heun", lower_order_final=False), KARRAS, 1, True, CROWSON
    ),
    "unipc": Entry(_on(unipc), TRAILING, 3, False, ZHAO),
    "unipc_3": Entry(_on(unipc, order=3), TRAILING, 4, False, ZHAO),
    "sa_solver": Entry(_on(sa_solver), TRAILING, 1, True, XUE),
}

ORDERS = (
    "orders hold between noise levels above 0; the last step, to the clean image, is the image predicted before it, "
    "whatever the sampler, and errs by about the square of its noise level"
)
# Variance of the reverse step: the name of ancestral sampling with it.
ANCESTRAL = {
    "fixed_large": "ddpm",
    "fixed_small": "ddpm_small",
    "learned": "ddpm_learned",
    "learned_range": "ddpm_learned_range",
}
FIXED = {"ddpm_large": "fixed_large", "ddpm_small": "fixed_small"}  # by name, whatever the network was trained for

# What k-diffusion calls those that have another name here; --grid karras is its usual grid.
ALIASES = {
    "dpm_2": "dpm2",
    "dpm_2_ancestral": "dpm2_ancestral",
    "dpmpp_2s_ancestral": "dpm_solver_pp_2s_ancestral",
    "dpmpp_sde": "dpm_solver_pp_sde",
    "dpmpp_2m": "dpm_solver_pp_2m",
    "dpmpp_2m_sde": "dpm_solver_pp_2m_sde",
    "dpmpp_3m_sde": "dpm_solver_pp_3m_sde",
}

GRIDS: dict[str, Spread] = {
    "sections": grids.sections,
    "leading": grids.leading,
    "trailing": grids.trailing,
    "linspace": grids.linspace,
    "uniform": grids.uniform,
    "quad": grids.quad,
    "lucidrains": grids.lucidrains,
    "karras": sigma_grids.karras,
    "exponential": sigma_grids.exponential,
    "beta": sigma_grids.beta,
    "log_snr_uniform": dpm_grids.log_snr_uniform,
    "time_uniform": dpm_grids.time_uniform,
    "time_quadratic": dpm_grids.time_quadratic,
    "fastdpm_step": fastdpm.step_grid,
    "fastdpm_var": fastdpm.var_grid,
}


def make_table(
    name: str,
    schedule: Schedule,
    num_steps: int,
    grid: str | None = None,
    *,
    variance: str | None = None,
    start: int = 0,
) -> Table:
    """The table of a sampler by name.

    Args:
      name: in CATALOGUE or ALIASES.
      schedule: of the network.
      num_steps: N.
      grid: in GRIDS; None is the sampler's own.
      variance: that the network was trained for, as in process.VarianceType: "ddpm" samples with it. None does not
        ask, and "ddpm" is Ho et al.'s, with fixed_large.
      start: the step of the grid at which it begins, as in `start_at`; for samplers.sample(..., x_t=x_t).

    Raises:
      ValueError: unknown sampler or grid; num_steps outside [least, T]; a grid that the sampler cannot run on; a
        sampler that needs another learned variance; start outside [0, N), or with fewer than `least` steps left.
    """
    entry = _entry(name, variance)
    spread = entry.spread if grid is None else choose("grid", grid, GRIDS)
    levels = spread(schedule, checked_steps(num_steps, schedule.num_timesteps, least=entry.least))
    return start_at(lambda grid: entry.on(schedule, grid), levels, start)


def make_table_at(
    name: str, schedule: Schedule, timesteps: Sequence[int] | np.ndarray, *, variance: str | None = None
) -> Table:
    """As make_table, with its steps at these timesteps, in any order: such as evaluate.optimal_timesteps finds.

    Raises:
      ValueError: as make_table; timesteps that repeat or lie outside [0, T).
    """
    entry = _entry(name, variance)
    checked_steps(len(timesteps), schedule.num_timesteps, least=entry.least)
    return entry.on(schedule, grids.from_timesteps(schedule, np.sort(timesteps)[::-1]))


def other_variance(name: str, variance: str) -> str | None:
    """What is to be said where a sampler adds other noise than the network was trained for; None where it does not."""
    if FIXED.get(name) in (None, variance):
        return None
    return f"sampler {name!r} has variance {FIXED[name]!r}, the network was trained for {variance!r}: 'ddpm' has that"


def _entry(name: str, variance: str | None) -> Entry:
    if name == "ddpm" and variance is not None:
        name = choose("variance", variance, ANCESTRAL)
    entry = choose("sampler", name, CATALOGUE | {alias: CATALOGUE[known] for alias, known in ALIASES.items()})
    if variance is not None and entry.variance not in (None, variance):
        raise ValueError(
            f"sampler {name!r} needs a network whose variance is {entry.variance!r} (objective.variance), "
            f"got one with {variance!r}"
        )
    return entry
