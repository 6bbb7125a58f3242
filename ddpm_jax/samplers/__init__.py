"""Samplers as tables, and the one loop that runs them. See `table` for the idea, `grids` for the conventions."""

from ddpm_jax.samplers import grids, run
from ddpm_jax.samplers.configs import from_diffusers_config
from ddpm_jax.samplers.denoise import (
    Denoise,
    Denoised,
    Remembering,
    clipped,
    consistency_denoiser,
    denoiser,
    mean_denoiser,
    preconditioned,
    projected,
    thresholded,
    x_0_from_edm,
    x_0_from_mean,
)
from ddpm_jax.samplers.differentiable import levels_of, table_at
from ddpm_jax.samplers.families.ablation import edm_ode, vp_betas
from ddpm_jax.samplers.families.ancestral import analytic_variances, ddpm
from ddpm_jax.samplers.families.consistency import consistency, lcm, tcd
from ddpm_jax.samplers.families.deis import deis
from ddpm_jax.samplers.families.dpm_sde import dpm_solver_sde
from ddpm_jax.samplers.families.dpm_solver import dpm_solver, dpm_solver_pp
from ddpm_jax.samplers.families.euler import euler, euler_ancestral
from ddpm_jax.samplers.families.heun import heun
from ddpm_jax.samplers.families.implicit import ddim, ddim_inverse
from ddpm_jax.samplers.families.ipndm import ipndm
from ddpm_jax.samplers.families.kdpm2 import kdpm2, kdpm2_ancestral
from ddpm_jax.samplers.families.late_churn import euler_late_churn
from ddpm_jax.samplers.families.lms import lms
from ddpm_jax.samplers.families.pndm import plms, pndm
from ddpm_jax.samplers.families.repaint import known, repaint
from ddpm_jax.samplers.families.sa_solver import sa_solver
from ddpm_jax.samplers.families.singlestep import dpm_solver_2s_ancestral, dpm_solver_singlestep
from ddpm_jax.samplers.families.unipc import unipc
from ddpm_jax.samplers.grids import Grid, Level, Pairs, dpm_grids, sigma_grids
from ddpm_jax.samplers.run import sample, trajectory
from ddpm_jax.samplers.runner import Runner, pad, stack
from ddpm_jax.samplers.table import Row, Table, row, sampler, show, start_at

edm = preconditioned  # its former name

__all__ = [
    "Denoise",
    "Denoised",
    "Grid",
    "Level",
    "Pairs",
    "Remembering",
    "Row",
    "Runner",
    "Table",
    "analytic_variances",
    "clipped",
    "consistency",
    "consistency_denoiser",
    "ddim",
    "ddim_inverse",
    "ddpm",
    "deis",
    "denoiser",
    "dpm_grids",
    "dpm_solver",
    "dpm_solver_2s_ancestral",
    "dpm_solver_pp",
    "dpm_solver_sde",
    "dpm_solver_singlestep",
    "edm",
    "edm_ode",
    "euler",
    "euler_ancestral",
    "euler_late_churn",
    "from_diffusers_config",
    "grids",
    "heun",
    "ipndm",
    "kdpm2",
    "kdpm2_ancestral",
    "known",
    "lcm",
    "levels_of",
    "lms",
    "mean_denoiser",
    "pad",
    "plms",
    "pndm",
    "preconditioned",
    "projected",
    "repaint",
    "row",
    "run",
    "sa_solver",
    "sample",
    "sampler",
    "show",
    "sigma_grids",
    "stack",
    "start_at",
    "table_at",
    "tcd",
    "thresholded",
    "trajectory",
    "unipc",
    "vp_betas",
    "x_0_from_edm",
    "x_0_from_mean",
]
