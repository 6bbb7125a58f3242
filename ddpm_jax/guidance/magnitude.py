"""Magnitude-aware guidance (MAMBO-G)."""

import jax
import jax.numpy as jnp

from ddpm_jax.guidance.geometry import inner
from ddpm_jax.guidance.method import Method, Numbers


def _combine(answers: tuple[jax.Array, ...], numbers: Numbers) -> jax.Array:
    c, u = answers
    d, size = c - u, inner(u, u)
    ratio = jnp.sqrt(inner(d, d) / size)
    scale, damping = (numbers[name].astype(c.dtype) for name in ("scale", "damping"))
    return c + (scale - 1) * jnp.exp(-damping * ratio) * d


MAGNITUDE_AWARE = Method(_combine, {"damping": 8.0}, nothing_at=None)
"""c + (scale - 1) exp(-damping |c - u| / |u|) (c - u): less guidance where the answers differ much, as at first.

`damping` is the paper's alpha.

Source: Zhu et al. 2025 (arXiv:2508.03442).
"""
