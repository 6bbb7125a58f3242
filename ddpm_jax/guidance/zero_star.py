"""CFG-Zero*."""

import jax
import jax.numpy as jnp

from ddpm_jax.guidance.geometry import along
from ddpm_jax.guidance.method import Method, Numbers


def _combine(answers: tuple[jax.Array, ...], numbers: Numbers) -> jax.Array:
    c, u = answers
    u = along(c, u)
    found = u + numbers["scale"].astype(c.dtype) * (c - u)
    return jnp.where(numbers["zero"] != 0, jnp.zeros_like(found), found)


CFG_ZERO_STAR = Method(_combine, {"zero": 0.0}, limits={"zero": (0.0, 1.0)}, nothing_at=None, overruled_by="zero")
"""s u + scale (c - s u), s = <c, u> / <u, u> of each example; 0 in rows whose number `zero` is 1.

Made for the velocity of a flow, whose first step it leaves out: guidance.on(table, CFG_ZERO_STAR, scale=5.0,
zero=np.arange(table.num_calls) < 1). In such a row the interval and the scale have no effect.

Source: Fan et al. 2025 (arXiv:2503.18886), algorithm 1.
"""
