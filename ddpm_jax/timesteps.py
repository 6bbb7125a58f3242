"""How training draws t."""

import jax


def uniform(key: jax.Array, num_timesteps: int) -> jax.Array:
    """t ~ Uniform{0, .., T-1}, int32, for one example.

    Source: Ho et al. 2020 (arXiv:2006.11239), algorithm 1.
    """
    return jax.random.randint(key, (), 0, num_timesteps)
