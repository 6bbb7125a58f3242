"""Adaptive projected guidance (APG), and its mix with classifier-free guidance."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from ddpm_jax.guidance.geometry import Axes, along, inner
from ddpm_jax.guidance.method import Method, Numbers
from ddpm_jax.names import unknown

Start = Literal["given", "nothing"]
DEFAULTS = {"eta": 0.0, "threshold": None, "momentum": -0.5, "projected": 1.0}


def adaptive_projected(*, start: Start = "given", axes: Axes = None) -> Method:
    """c + (scale - 1) (d_perpendicular + eta d_parallel), d = m min(1, threshold / |m|), m = c - u + momentum m_before.

    Parallel and perpendicular are meant to c, of each example. Numbers:

      eta: 0, as in the paper, drops what is parallel to c, by which colours saturate; 1 keeps it.
      threshold: the largest length of the difference, in units of the network's output; inf for none. The paper has 2.5
        to 15, from network to network, so it must be given.
      momentum: of the running sum m, which the method remembers from row to row; negative in the paper.
      projected: where it is 0 in a row, the answer is u + scale (c - u), and m goes on: the mix of both.

    The paper has c and u as x_0, see `guided_on_x_0`; diffusers takes the network's output whatever it is.

    Source: Sadat et al. 2024 (arXiv:2410.02416), eq. 5 to 8 and algorithm 1. The mix is diffusers'
    AdaptiveProjectedMixGuidance.

    Args:
      start: "given" as above; "nothing" is u + scale (...), as in diffusers without use_original_formulation. With
        eta = 1, momentum 0 and no threshold both are classifier-free guidance.
      axes: of an image [B, H, W, C], over which lengths and inner products are summed; None for all but the first.

    Raises:
      ValueError: unknown start.
    """
    if start not in get_args(Start):
        raise unknown("start", start, get_args(Start))

    def combine(answers: tuple[jax.Array, ...], numbers: Numbers, memory: jax.Array) -> tuple[jax.Array, Any]:
        c, u = answers
        of = lambda name: numbers[name].astype(c.dtype)
        scale, memory = of("scale"), c - u + of("momentum") * memory
        length = jnp.sqrt(inner(memory, memory, axes))
        # Where the length is 0, so is what is made shorter.
        d = memory * jnp.minimum(1, of("threshold") / jnp.where(length > 0, length, 1))
        parallel = along(d, c, axes)
        update = d - parallel + of("eta") * parallel
        projected = c + (scale - 1) * update if start == "given" else u + scale * update
        return jnp.where(numbers["projected"] != 0, projected, u + scale * (c - u)), memory

    return Method(
        combine,
        DEFAULTS,
        given_at=1.0 if start == "given" else None,
        nothing_at=None,
        memory=lambda like: jnp.zeros(like.shape, like.dtype),
    )


ADAPTIVE_PROJECTED = adaptive_projected()
