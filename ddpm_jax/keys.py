"""Random keys: the one that a seed makes, and one per example or sample by its global index.

Results do not depend on how a set is cut into batches, nor on which generator JAX is told to take by default: TPUs are
often told "rbg", whose draws under jax.vmap depend on the whole batch.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

IMPLEMENTATION = "threefry2x32"
SETTINGS = {"jax_threefry_partitionable": True, "jax_random_seed_offset": 0}
"""What JAX can be told that changes the draws of such a key, and the values under which they are ours."""
OF_BATCHES = ("rbg", "unsafe_rbg")


def make(seed: int) -> jax.Array:
    """The threefry2x32 key of a seed, whatever JAX_DEFAULT_PRNG_IMPL is.

    Args:
      seed: in [0, 2^32).

    Raises:
      ValueError: JAX is set so that the draws would be others.
    """
    check(SETTINGS)
    return jax.random.key(seed, impl=IMPLEMENTATION)


def check(settings: dict[str, int | bool]) -> None:
    """Whether JAX is set as `settings` say.

    Raises:
      ValueError: it is not; says the name of the variable.
    """
    for name, value in settings.items():
        if (found := getattr(jax.config, name)) != value:
            raise ValueError(f"{name.upper()} must be {value}, got {found}: runs and pictures would be others under it")


def example_keys(key: jax.Array, first_index: int | jax.Array, count: int) -> jax.Array:
    """fold_in(key, i) for i = first_index .. first_index + count - 1; keys [count].

    Raises:
      ValueError: a key whose draws depend on the batch that they are made in.
    """
    if (implementation := str(jax.random.key_impl(key))) in OF_BATCHES:
        raise ValueError(
            f"key must be of a generator whose draws do not depend on the batch, got one of {implementation}: make it "
            f"with jax.random.key(seed, impl={IMPLEMENTATION!r})"
        )
    indices = jnp.asarray(first_index, jnp.uint32) + jnp.arange(count, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)


def folded(keys: jax.Array, number: ArrayLike) -> jax.Array:
    """fold_in(key, number) for each of keys [B]: keys of another draw of the same examples."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def normals(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """z ~ N(0, I) float32 [B, *shape], each example by its own of the keys [B]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
