"""Linear multistep: Adams-Bashforth on x / alpha as a function of sigma, on a grid of any spacing."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.polynomial.legendre import leggauss

from ddpm_jax.samplers.families.exponential import checked_order
from ddpm_jax.samplers.grids import Grid
from ddpm_jax.samplers.grids.sigma_grids import ratio
from ddpm_jax.samplers.table import ACC, EPS, M1, M2, M3, SAVED, X0, Row, row, sampler

# Where past eps are kept, newest first: all registers but X.
PAST = {"M1": M1, "M2": M2, "M3": M3, "SAVED": SAVED, "ACC": ACC}


@sampler
def lms(grid: Grid, *, order: int = 4) -> Iterator[Row]:
    """x_t / alpha_t = x_s / alpha_s + the integral from sigma_s to sigma_t of the polynomial through past eps.

    Source: k-diffusion (sample_lms); Hairer, Norsett & Wanner, Solving ODEs I, section III.5. The integrals are exact.

    Args:
      grid: levels of any process.
      order: 1 to 6, how many eps the polynomial goes through; the first steps have fewer.

    Raises:
      ValueError: order outside 1 .. 6.
    """
    checked_order("order", order, 1 + len(PAST))
    sigmas = [ratio(level) for level in grid.levels]
    history = (EPS, *PAST.values())[:order]
    for i, (s, t) in enumerate(grid.steps()):
        known = min(i + 1, order)
        weights = adams_weights(sigmas[i + 1 - known : i + 1][::-1], sigmas[i + 1])
        step = sum((w * eps for w, eps in zip(weights, history, strict=False)), 0 * EPS)
        shifted: Any = dict(zip(PAST, history[:-1], strict=False))
        yield row(s, X=t.alpha * (X0 + ratio(s) * EPS + step), **shifted)


def adams_weights(nodes: Sequence[float], end: float) -> list[float]:
    """The integral from nodes[0] to `end` of each Lagrange polynomial of the nodes."""
    points, gauss = leggauss(len(nodes))  # exact for the degrees there are
    half = (end - nodes[0]) / 2
    x = nodes[0] + half * (1 + points)
    weights = []
    for j, node in enumerate(nodes):
        lagrange = np.prod([(x - other) / (node - other) for k, other in enumerate(nodes) if k != j], axis=0)
        weights.append(half * float((gauss * lagrange).sum()))
    return weights
