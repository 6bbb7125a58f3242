"""`special.edm` under the name that it had."""

from ddpm_jax.special.edm import *  # noqa: F403
