"""Few-step sampling of distilled networks: consistency models, latent (LCM) and trajectory (TCD) ones."""

from collections.abc import Iterator, Sequence
from math import floor, hypot, sqrt

import numpy as np

from ddpm_jax.samplers.families.ancestral import transition_variance
from ddpm_jax.samplers.grids import Grid, Level, Pairs, level
from ddpm_jax.samplers.grids.sigma_grids import ratio
from ddpm_jax.samplers.table import EPS, X0, Row, X, Z, row, sampler
from ddpm_jax.schedules import Schedule


@sampler
def consistency(grid: Grid, *, sigma_min: float, s_noise: float = 1.0) -> Iterator[Row]:
    """x_t / alpha_t = x_0 + s_noise sqrt(sigma_t^2 - sigma_min^2) z: the image is predicted anew from every level.

    For networks under `consistency_denoiser` with this sigma_min, the noise that an image has.

    Source: Song et al. 2023 (arXiv:2303.01469), algorithm 1.

    Args:
      grid: levels whose last is at sigma_min; sigma is that of x / alpha.
      sigma_min: positive.
      s_noise: inflates the noise.
    """
    for s, t in grid.steps():
        up = sqrt(max(ratio(t) ** 2 - sigma_min**2, 0.0))
        yield row(s, X=t.alpha * (X0 + s_noise * up * Z))


@sampler
def lcm(grid: Grid, *, timestep_scaling: float = 10.0, sigma_data: float = 0.5) -> Iterator[Row]:
    """x_t = alpha_t f + sigma_t z,  f = c_out x_0 + c_skip x_s: the image is predicted anew from every level.

    c_skip = sigma_data^2 / (tau^2 + sigma_data^2), c_out = tau / sqrt(tau^2 + sigma_data^2), tau = time * scaling.

    Source: Luo et al. 2023 (arXiv:2310.04378), algorithm 3 and section 4.1; Song et al. 2023 (arXiv:2303.01469),
    algorithm 1. The last step adds no noise.

    Args:
      grid: levels of a variance-preserving process.
      timestep_scaling: factor of the time in c_skip and c_out.
      sigma_data: standard deviation of the data.
    """
    for s, t in grid.steps():
        tau = s.time * timestep_scaling
        image = tau / hypot(tau, sigma_data) * X0 + sigma_data**2 / (tau**2 + sigma_data**2) * X
        yield row(s, X=image if t is grid.levels[-1] else t.alpha * image + t.sigma * Z)


@sampler
def tcd(grid: Grid | Pairs, *, inner: Sequence[Level]) -> Iterator[Row]:
    """x_u = alpha_u x_0 + sigma_u eps, then up from the inner level u to t: x_t = a x_u + sqrt(1 - a^2) z.

    a = alpha_t / alpha_u. An inner level equal to t takes no noise.

    Source: Zheng et al. 2024 (arXiv:2402.19159), algorithm 4 ("strategic stochastic sampling").

    Args:
      grid: levels of a variance-preserving process; TCD ends at the level of t = 0 (last="first").
      inner: [N] levels, as from `inner_levels`.

    Raises:
      ValueError: another number of inner levels than steps, or one noisier than its step's end.
    """
    if len(inner) != grid.num_steps:
        raise ValueError(f"inner must have one level a step, {grid.num_steps}, got {len(inner)}")
    for (s, t), u in zip(grid.steps(), inner, strict=True):
        keep = t.alpha / u.alpha
        if keep > 1:
            raise ValueError(
                f"an inner level must not be noisier than its step's end, got alpha {u.alpha:g} at time {u.time:g} "
                f"before alpha {t.alpha:g}; a grid for tcd ends with last='first'"
            )
        yield row(s, X=keep * (u.alpha * X0 + u.sigma * EPS) + sqrt(transition_variance(t, u)) * Z)


def inner_levels(schedule: Schedule, grid: Grid | Pairs, eta: float) -> list[Level]:
    """The levels floor((1 - eta) t) for the ends t of the steps.

    Source: Zheng et al. 2024 (arXiv:2402.19159), eq. 20 (their gamma is eta).

    Raises:
      ValueError: eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    # float32, as the reference multiplies: in float64 a product just below a whole number falls one short.
    return [level(schedule, floor(np.float32(1 - eta) * np.float32(t.time))) for _, t in grid.steps()]
