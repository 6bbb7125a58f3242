"""Tangential damping of classifier-free guidance (TCFG)."""

import jax
import jax.numpy as jnp

from ddpm_jax.guidance.geometry import along, inner
from ddpm_jax.guidance.method import Method, Numbers


def _combine(answers: tuple[jax.Array, ...], numbers: Numbers) -> jax.Array:
    c, u = answers
    # The first right singular vector of the rows c and u is cos(angle) c + sin(angle) u, up to its length.
    angle = jnp.arctan2(2 * inner(c, u), inner(c, c) - inner(u, u)) / 2
    u = along(u, jnp.cos(angle) * c + jnp.sin(angle) * u)
    return u + numbers["scale"].astype(c.dtype) * (c - u)


TANGENTIAL = Method(_combine, nothing_at=None)
"""u' + scale (c - u'), u' = <u, v> v, v the direction that c and u have most in common.

v is the first right singular vector of the matrix of rows c and u: what of u is tangential to the conditional data, and
leads away from it, is dropped.

Source: Kwon et al. 2025 (arXiv:2503.18137), algorithm 1.
"""
