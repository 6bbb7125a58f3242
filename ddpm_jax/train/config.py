"""`config.run` under the name that it had."""

from ddpm_jax.config.run import *  # noqa: F403
