"""Linear multistep: Adams-Bashforth on x / alpha as a function of sigma, on a grid of any spacing."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.polynomial import Polynomial

from ddpm_jax.samplers.grids import Grid
from ddpm_jax.samplers.sigma_grids import ratio
from ddpm_jax.samplers.table import EPS, M1, M2, M3, X0, Row, row, sampler


@sampler
def lms(grid: Grid, *, order: int = 4) -> Iterator[Row]:
    """x_t / alpha_t = x_s / alpha_s + the integral from sigma_s to sigma_t of the polynomial through past eps.

    Source: k-diffusion (sample_lms); Hairer, Norsett & Wanner, Solving ODEs I, section III.5. The integrals are exact.

    Args:
      grid: levels of any process.
      order: 1 to 4, how many eps the polynomial goes through; the first steps have fewer.

    Raises:
      ValueError: order outside 1 .. 4.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order must be 1, 2, 3 or 4, got {order}")
    sigmas = [ratio(level) for level in grid.levels]
    history = (EPS, M1, M2, M3)[:order]
    for i, (s, t) in enumerate(grid.steps()):
        known = min(i + 1, order)
        weights = adams_weights(sigmas[i + 1 - known : i + 1][::-1], sigmas[i + 1])
        step = sum((w * eps for w, eps in zip(weights, history, strict=False)), 0 * EPS)
        shifted = dict(zip(("M1", "M2", "M3"), history[:-1], strict=False))
        yield row(s, X=t.alpha * (X0 + ratio(s) * EPS + step), **shifted)


def adams_weights(nodes: Sequence[float], end: float) -> list[float]:
    """The integral from nodes[0] to `end` of each Lagrange polynomial of the nodes."""
    length = end - nodes[0]
    scaled = [(node - nodes[0]) / length for node in nodes]
    weights = []
    for j, node in enumerate(scaled):
        others = [other for k, other in enumerate(scaled) if k != j]
        integral = Polynomial.fromroots(others).integ() if others else Polynomial([0.0, 1.0])
        weights.append(length * (integral(1.0) - integral(0.0)) / np.prod([node - other for other in others]))
    return weights
