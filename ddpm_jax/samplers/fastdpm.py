"""`samplers.grids.fastdpm` under the name that it had."""

from ddpm_jax.samplers.grids.fastdpm import *  # noqa: F403
