"""`samplers.grids.sigma_grids` under the name that it had."""

from ddpm_jax.samplers.grids.sigma_grids import *  # noqa: F403
