"""The conventions in which samplers differ, by name: functions Setup -> Setup as `search` takes them.

The letters are those of the parity checklist: S schedules, R the reverse step, T timesteps, H high-order solvers.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ddpm_jax import schedules
from ddpm_jax.samplers import grids
from ddpm_jax.samplers.catalogue import Spread
from ddpm_jax.samplers.families.deis import deis
from ddpm_jax.samplers.families.dpm_solver import dpm_solver
from ddpm_jax.samplers.families.implicit import ddim
from ddpm_jax.samplers.families.pndm import plms, pndm
from ddpm_jax.samplers.families.singlestep import dpm_solver_singlestep
from ddpm_jax.samplers.families.unipc import unipc
from ddpm_jax.samplers.grids import Pairs, dpm_grids, sigma_grids
from ddpm_jax.schedules import Schedule
from ddpm_jax.tools.parity.ours import On, Setup
from ddpm_jax.tools.parity.search import having

Convention = Callable[[Setup], Setup | None]


def _scheduled(rebuild: Callable[[Schedule], Schedule]) -> Convention:
    return lambda setup: dataclasses.replace(setup, schedule=rebuild(setup.schedule))


def in_float32(schedule: Schedule) -> Schedule:
    """The schedule whose alphas_cumprod are float32 numbers."""
    keep = np.cumprod(1 - schedule.betas_float64.astype(np.float32), dtype=np.float64).astype(np.float32)
    keep = keep.astype(np.float64)
    return schedules.from_betas(1 - keep / np.append(1, keep[:-1]))


def _ends(make: Callable[..., Schedule]) -> Callable[[Schedule], Schedule]:
    """Another curve between the same betas."""
    return lambda schedule: make(
        schedule.num_timesteps,
        beta_start=float(schedule.betas_float64[0]),
        beta_end=float(schedule.betas_float64[-1]),
    )


def _raw_eps(setup: Setup) -> Setup | None:
    return None if setup.clip is None else dataclasses.replace(setup, eps_after_clip="raw")


def _other_sampler(names: Mapping[str, str]) -> Convention:
    """Another member of the family."""
    return lambda setup: (
        dataclasses.replace(setup, sampler=names[setup.sampler], on=None) if setup.sampler in names else None
    )


def _form(forms: Mapping[str, On]) -> Convention:
    """Another form of the same sampler."""
    return lambda setup: (
        dataclasses.replace(setup, on=forms[setup.sampler])
        if setup.sampler in forms and setup.on is not forms[setup.sampler]
        else None
    )


def _of(sampler: Callable[..., Any], **options: Any) -> On:
    return lambda schedule, grid: sampler(grid, **options)


def _pndm_of_diffusers(schedule: Schedule, pairs: Any) -> Any:
    steps = [int(s.time) for s, _ in (pairs.pairs if isinstance(pairs, Pairs) else pairs.steps())]
    stride = schedule.num_timesteps // len(steps)
    at = lambda t: grids.level(schedule, t, last="first")
    middle, reached = [at(t + stride // 2) for t in steps[1:4]], [at(t - stride // 2) for t in steps[:3]]
    return pndm(pairs, middle=middle, reached=reached)


def _plms_of_diffusers(schedule: Schedule, pairs: Any) -> Any:
    steps = [int(s.time) for s, _ in pairs.steps()]
    stride = schedule.num_timesteps // len(steps)
    return plms(pairs, restart=grids.level(schedule, steps[1] + stride) if len(steps) > 1 else None)


M2, M3, SDE2, SDE3 = "dpm_solver_pp_2m", "dpm_solver_pp_3m", "dpm_solver_pp_2m_sde", "dpm_solver_pp_3m_sde"
SDE3_OPTIONS = {"order": 3, "eta": 1.0, "method": "heun", "lower_order_final": False}
SPACINGS: dict[str, Spread] = {
    "T1 timestep_spacing='leading'": grids.leading,
    "T1 timestep_spacing='linspace'": grids.linspace,
    "T1 timestep_spacing='trailing'": grids.trailing,
    "T2 timestep_spacing='leading' of the log-SNR classes": dpm_grids.leading,
    "T2 timestep_spacing='linspace' of the log-SNR classes": dpm_grids.linspace,
    "T1 timesteps between whole numbers (linspace)": sigma_grids.linspace,
    "H6 use_karras_sigmas": sigma_grids.karras,
    "H6 use_exponential_sigmas": sigma_grids.exponential,
    "H6 use_beta_sigmas": sigma_grids.beta,
}
CONVENTIONS: dict[str, Convention] = {
    "S5 schedule in float32": _scheduled(in_float32),
    "S2 beta_schedule='scaled_linear'": _scheduled(_ends(schedules.quad)),
    "S2 beta_schedule='linear'": _scheduled(_ends(schedules.linear)),
    "S4 beta_schedule='squaredcos_cap_v2'": _scheduled(lambda schedule: schedules.cosine(schedule.num_timesteps)),
    "prediction_type='epsilon'": having(prediction="eps"),
    "prediction_type='v_prediction'": having(prediction="v"),
    "prediction_type='sample'": having(prediction="x_0"),
    "R2 clip_sample=False": having(clip=None),
    "R2 clip_sample=True": having(clip=1.0),
    "T5 eps not re-derived after clipping": _raw_eps,
    **{name: having(spread=spread) for name, spread in SPACINGS.items()},
    "T1 steps_offset=1": having(offset=1),
    "T1 steps_offset=0": having(offset=0),
    "T3 steps from t to t - T // N": having(stride="T // N"),
    "T4 set_alpha_to_one=False, or final_sigmas_type='sigma_min'": having(last="first"),
    "T4 set_alpha_to_one=True, or final_sigmas_type='zero'": having(last="clean"),
    "H6 times told as whole numbers": having(times="rounded"),
    "H7 start of standard deviation sigma": having(start="sigma"),
    "R3 variance_type='fixed_small'": _other_sampler({"ddpm": "ddpm_small", "ddpm_large": "ddpm_small"}),
    "R3 variance_type='fixed_large'": _other_sampler({"ddpm_small": "ddpm"}),
    "T6 eta=1": _other_sampler({"ddim": "ddim_eta1"}),
    "T6 eta=0": _other_sampler({"ddim_eta1": "ddim"}),
    "T8 skip_prk_steps=True": _other_sampler({"pndm": "plms"}),
    "T8 skip_prk_steps=False": _other_sampler({"plms": "pndm"}),
    "T8 half steps of T // N // 2": _form({"pndm": _pndm_of_diffusers, "plms": _plms_of_diffusers}),
    "H1 solver_order=1": _form({**dict.fromkeys((M2, M3, "unipc", "unipc_3", "deis"), _of(ddim))}),
    "H1 solver_order=2": _other_sampler({M3: M2, "unipc_3": "unipc", SDE3: SDE2, "dpm_solver_3": "dpm_solver_2"}),
    "H1 solver_order=3": _other_sampler({M2: M3, "unipc": "unipc_3", SDE2: SDE3, "dpm_solver_2": "dpm_solver_3"}),
    "H1 deis of order 2": _form({"deis": _of(deis, order=2)}),
    "H1 lower_order_final=False": _form(
        {
            "deis": _of(deis, order=3, lower_order_final=False),
            "dpm_solver_2": _of(dpm_solver_singlestep, predict="eps", lower_order_final=False),
        }
    ),
    "H1 euler_at_final": _form({M2: _of(dpm_solver, euler_at_final=True)}),
    "H1 algorithm_type='dpmsolver'": _form({M2: _of(dpm_solver, predict="eps")}),
    "H3 solver_type='heun'": _form(
        {
            M2: _of(dpm_solver, method="heun"),
            SDE2: _of(dpm_solver, eta=1.0, method="heun"),
            "dpm_solver_pp_2s": _of(dpm_solver_singlestep, method="heun"),
            "dpm_solver_3": _of(dpm_solver_singlestep, order=3, predict="eps", method="heun"),
        }
    ),
    "H3 all stages by solver_type='midpoint'": _form(
        {"dpm_solver_3": _of(dpm_solver_singlestep, order=3, predict="eps", method="midpoint")}
    ),
    "H3 third order as in the reference code": _other_sampler({"dpm_solver_pp_3m_corrected": M3}),
    "H3 third order of diffusers' SDE": _form({SDE3: _of(dpm_solver, third_order="diffusers_sde", **SDE3_OPTIONS)}),
    "H5 solver_type='bh1'": _form({"unipc": _of(unipc, variant="bh1"), "unipc_3": _of(unipc, order=3, variant="bh1")}),
}
