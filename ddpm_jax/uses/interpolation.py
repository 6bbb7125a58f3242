"""Pictures between pictures: the way on the sphere between the noises that two of them come from."""

import jax
import jax.numpy as jnp

from ddpm_jax.samplers import Denoise, Table
from ddpm_jax.uses.inversion import reconstruct

NEARLY = 1e-3
"""A sine that is not divided by: float32 knows no angle below a few 1e-4 from its cosine."""


def slerp(a: jax.Array, b: jax.Array, fraction: jax.Array | float) -> jax.Array:
    """(sin((1 - f) angle) a + sin(f angle) b) / sin(angle), angle between a and b: [...] like both.

    Of directions that are nearly the same it is the straight line. Normal noise of many numbers has nearly one length,
    and so have all that are between.

    Source: Song et al. 2021 (arXiv:2010.02502), eq. 67; Shoemake 1985, SIGGRAPH, "Animating rotation with quaternion
    curves".

    Args:
      a, b: [...], each as one vector.
      fraction: f, in [0, 1]; 0 is a, 1 is b.

    Not checked: that a and b are not opposite, where no way is the shortest; it is then the straight line.
    """
    cosine = (a * b).sum() / jnp.sqrt((a**2).sum() * (b**2).sum())
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    f = jnp.asarray(fraction, a.dtype)
    sine = jnp.sin(angle)
    straight = sine < NEARLY
    of_a = jnp.where(straight, 1 - f, jnp.sin((1 - f) * angle) / jnp.where(straight, 1, sine))
    of_b = jnp.where(straight, f, jnp.sin(f * angle) / jnp.where(straight, 1, sine))
    return of_a * a + of_b * b


def check_quiet(table: Table) -> None:
    """Raises ValueError: a table that draws noise, which would differ from picture to picture."""
    if table.rows.update[:, :, -1].any():
        raise ValueError("between two pictures a sampler must not draw noise: take a deterministic one, such as ddim")


def between(denoise: Denoise, table: Table, a: jax.Array, b: jax.Array, fractions: jax.Array) -> jax.Array:
    """[F, ...] what the table makes of slerp(a, b, f) for each f.

    Args:
      denoise: the network's.
      table: deterministic.
      a, b: [...] X of the table's first row, as of `inversion.invert`.
      fractions: [F] in [0, 1].

    Raises:
      ValueError: a table that draws noise.
    """
    check_quiet(table)
    x_t = jax.vmap(slerp, in_axes=(None, None, 0))(a, b, fractions)
    return reconstruct(denoise, table, x_t)
