"""Samplers as tables, and the one loop that runs them. See `table` for the idea, `grids` for the conventions."""

from ddpm_jax.samplers import grids, run
from ddpm_jax.samplers.ancestral import ddpm
from ddpm_jax.samplers.denoise import clipped, denoiser
from ddpm_jax.samplers.grids import Grid, Level
from ddpm_jax.samplers.implicit import ddim
from ddpm_jax.samplers.run import sample
from ddpm_jax.samplers.table import Row, Table, row, sampler, show

__all__ = [
    "Grid",
    "Level",
    "Row",
    "Table",
    "clipped",
    "ddim",
    "ddpm",
    "denoiser",
    "grids",
    "row",
    "run",
    "sample",
    "sampler",
    "show",
]
