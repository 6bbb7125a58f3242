"""Samplers by name, each on a grid its authors use: what `ddpm-jax samplers` lists.

Where a name is not enough, call the sampler: `samplers.unipc(grids.karras(schedule, 8), order=3)`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ddpm_jax.names import choose
from ddpm_jax.samplers import dpm_grids, fastdpm, grids, sigma_grids
from ddpm_jax.samplers.ancestral import ddpm
from ddpm_jax.samplers.deis import deis
from ddpm_jax.samplers.dpm_solver import dpm_solver
from ddpm_jax.samplers.euler import euler, euler_ancestral
from ddpm_jax.samplers.grids import Grid
from ddpm_jax.samplers.heun import heun
from ddpm_jax.samplers.implicit import ddim
from ddpm_jax.samplers.ipndm import ipndm
from ddpm_jax.samplers.kdpm2 import kdpm2, kdpm2_ancestral
from ddpm_jax.samplers.lms import lms
from ddpm_jax.samplers.pndm import plms
from ddpm_jax.samplers.sa_solver import sa_solver
from ddpm_jax.samplers.singlestep import dpm_solver_2s_ancestral, dpm_solver_singlestep
from ddpm_jax.samplers.table import Table
from ddpm_jax.samplers.unipc import unipc
from ddpm_jax.schedules import Schedule, respace


class Entry(NamedTuple):
    """A sampler by name: the table for num_steps steps, the order of convergence, whether it draws noise, a source.

    variance is what the network must have learned for it, None where any network will do.
    """

    make: Callable[[Schedule, int], Table]
    order: int
    stochastic: bool
    source: str
    variance: str | None = None


def _on(
    sampler: Callable[..., Table], spread: Callable[[Schedule, int], Grid], **options: object
) -> Callable[..., Table]:
    return lambda schedule, num_steps: sampler(spread(schedule, num_steps), **options)


def _between(sampler: Callable[..., Table]) -> Callable[..., Table]:
    """For samplers that choose levels between those of the grid."""
    return lambda schedule, n: sampler(sigma_grids.karras(schedule, n), sigma_grids.discrete(schedule))


SECTIONS, TRAILING, KARRAS = grids.sections, dpm_grids.trailing, sigma_grids.karras
HO, SONG = "Ho et al. 2020, arXiv:2006.11239", "Song et al. 2021, arXiv:2010.02502"
NICHOL = "Nichol & Dhariwal 2021, arXiv:2102.09672"
KONG, LIU = "Kong & Ping 2021, arXiv:2106.00132", "Liu et al. 2022, arXiv:2202.09778"
KARRAS_22, ZHANG = "Karras et al. 2022, arXiv:2206.00364", "Zhang & Chen 2022, arXiv:2204.13902"
LU, LU_PP = "Lu et al. 2022, arXiv:2206.00927", "Lu et al. 2022, arXiv:2211.01095"
ZHAO, XUE, CROWSON = "Zhao et al. 2023, arXiv:2302.04867", "Xue et al. 2023, arXiv:2309.05019", "Crowson, k-diffusion"

CATALOGUE = {
    "ddpm": Entry(_on(ddpm, SECTIONS), 1, True, HO),
    "ddpm_small": Entry(_on(ddpm, SECTIONS, variance="fixed_small"), 1, True, HO),
    "ddpm_learned": Entry(_on(ddpm, SECTIONS, variance="learned"), 1, True, NICHOL, "learned"),
    "ddpm_learned_range": Entry(_on(ddpm, SECTIONS, variance="learned_range"), 1, True, NICHOL, "learned_range"),
    "ddim": Entry(_on(ddim, SECTIONS), 1, False, SONG),
    "ddim_eta1": Entry(_on(ddim, SECTIONS, eta=1.0), 1, True, SONG),
    "fastdpm_step": Entry(_on(ddim, fastdpm.step_grid), 1, False, KONG),
    "fastdpm_var": Entry(_on(ddim, fastdpm.var_grid), 1, False, KONG),
    "plms": Entry(_on(plms, SECTIONS), 2, False, LIU),
    "ipndm": Entry(_on(ipndm, SECTIONS), 4, False, ZHANG),
    "deis": Entry(_on(deis, TRAILING, order=3), 3, False, ZHANG),
    "euler": Entry(_on(euler, KARRAS), 1, False, KARRAS_22),
    "heun": Entry(_on(heun, KARRAS), 2, False, KARRAS_22),
    "lms": Entry(_on(lms, KARRAS), 4, False, CROWSON),
    "dpm2": Entry(_between(kdpm2), 2, False, KARRAS_22),
    "dpm2_ancestral": Entry(_between(kdpm2_ancestral), 1, True, CROWSON),
    "euler_ancestral": Entry(_on(euler_ancestral, KARRAS), 1, True, CROWSON),
    "dpm_solver_2": Entry(_on(dpm_solver_singlestep, TRAILING, predict="eps"), 2, False, LU),
    "dpm_solver_3": Entry(
        _on(dpm_solver_singlestep, TRAILING, order=3, predict="eps", method="midpoint", inner="heun"), 3, False, LU
    ),
    "dpm_solver_pp_2s": Entry(_on(dpm_solver_singlestep, TRAILING), 2, False, LU_PP),
    "dpm_solver_pp_2s_ancestral": Entry(_between(dpm_solver_2s_ancestral), 1, True, CROWSON),
    "dpm_solver_pp_2m": Entry(_on(dpm_solver, TRAILING), 2, False, LU_PP),
    "dpm_solver_pp_3m": Entry(_on(dpm_solver, TRAILING, order=3), 2, False, LU_PP),
    "dpm_solver_pp_3m_corrected": Entry(
        _on(dpm_solver, TRAILING, order=3, third_order="corrected"), 3, False, "docs/solver_orders.md"
    ),
    "dpm_solver_pp_2m_sde": Entry(_on(dpm_solver, TRAILING, eta=1.0), 1, True, LU_PP),
    "dpm_solver_pp_3m_sde": Entry(_on(dpm_solver, TRAILING, order=3, eta=1.0), 1, True, CROWSON),
    "unipc": Entry(_on(unipc, TRAILING), 3, False, ZHAO),
    "unipc_3": Entry(_on(unipc, TRAILING, order=3), 4, False, ZHAO),
    "sa_solver": Entry(_on(sa_solver, TRAILING), 1, True, XUE),
}


def make_table(name: str, schedule: Schedule, num_steps: int, *, variance: str | None = None) -> Table:
    """The table of a sampler by name.

    Args:
      name: one of CATALOGUE.
      schedule: that of the training.
      num_steps: in [1, T].
      variance: of the network it is for, as in process.VarianceType; None does not ask.

    Raises:
      ValueError: unknown sampler; num_steps outside [1, T], or fewer than the sampler needs; a sampler that needs
        another learned variance.
    """
    entry = choose("sampler", name, CATALOGUE)
    if variance is not None and entry.variance not in (None, variance):
        raise ValueError(
            f"sampler {name!r} needs a network whose variance is {entry.variance!r} (objective.variance), "
            f"got one with {variance!r}"
        )
    return entry.make(schedule, grids.checked_steps(num_steps, schedule.num_timesteps))


def make_table_at(
    name: str, schedule: Schedule, timesteps: Sequence[int] | np.ndarray, *, variance: str | None = None
) -> Table:
    """As make_table, on these timesteps of the schedule, in any order: such as evaluate.optimal_timesteps finds.

    Raises:
      ValueError: as make_table; timesteps that repeat or lie outside [0, T); a sampler that looks at other levels.
    """
    steps = np.sort(timesteps)
    table = make_table(name, respace(schedule, steps), len(steps), variance=variance)
    if set(table.rows.time) != set(np.asarray(schedule.timesteps)[steps]):
        raise ValueError(f"sampler {name!r} chooses levels of its own, it cannot use the timesteps {steps.tolist()}")
    return table
