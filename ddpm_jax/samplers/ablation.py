"""Euler, Heun and midpoint in any time variable and scaling of x: the samplers before EDM, on equal terms."""

from collections.abc import Callable, Iterator
from math import exp, log, sqrt

from ddpm_jax.names import choose
from ddpm_jax.samplers.grids import Grid, Level
from ddpm_jax.samplers.sigma_grids import LevelAt, ratio
from ddpm_jax.samplers.table import EPS, SAVED, X0, Row, X, row, sampler

BETA_D, BETA_MIN = 19.9, 0.1  # of the continuous variance-preserving process

# Each: (time of sigma, sigma of time, d sigma / d time as a function of (time, sigma)).
Clock = tuple[Callable[[float], float], Callable[[float], float], Callable[[float, float], float]]
SCHEDULES: dict[str, Clock] = {
    "linear": (lambda sigma: sigma, lambda t: t, lambda t, sigma: 1.0),
    "ve": (lambda sigma: sigma**2, sqrt, lambda t, sigma: 1 / (2 * sigma)),
    "vp": (
        lambda sigma: (sqrt(BETA_MIN**2 + 2 * BETA_D * log(1 + sigma**2)) - BETA_MIN) / BETA_D,
        lambda t: sqrt(exp(BETA_D * t**2 / 2 + BETA_MIN * t) - 1),
        lambda t, sigma: (BETA_MIN + BETA_D * t) * (sigma + 1 / sigma) / 2,
    ),
}
# Each: (s as a function of sigma, d s / d sigma).
SCALINGS: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "none": (lambda sigma: 1.0, lambda sigma: 0.0),
    "vp": (lambda sigma: 1 / sqrt(1 + sigma**2), lambda sigma: -sigma / (1 + sigma**2) ** 1.5),
}


@sampler
def edm_ode(
    grid: Grid, level_at: LevelAt, *, schedule: str = "linear", scaling: str = "none", inner: float | None = 1.0
) -> Iterator[Row]:
    """dx / dt = s' x_0 + (s sigma)' eps  for  x = s(t) (x_0 + sigma(t) eps), by one- or two-stage Runge-Kutta in t.

    With h = t_next - t, d at t and d' at t + inner h:  x_next = x + h ((1 - 1 / (2 inner)) d + 1 / (2 inner) d').

    Source: Karras et al. 2022 (arXiv:2206.00364), eq. 4, table 1 and algorithms 1 and 3 (appendix D.2).

    Args:
      grid: the sigmas, ending in 0.
      level_at: what the network is told at a sigma.
      schedule: sigma(t): "linear", t; "ve", sqrt(t); "vp", of the continuous process with beta from 0.1 to 20.
      scaling: s(t): "none", 1; "vp", 1 / sqrt(1 + sigma^2).
      inner: None is Euler, 1 Heun, 0.5 the midpoint rule; in (0, 1]. The last step is Euler's.

    Raises:
      ValueError: unknown schedule or scaling; inner outside (0, 1].
    """
    time_of, sigma_of, speed_of = choose("schedule", schedule, SCHEDULES)
    scale_of, slope_of = choose("scaling", scaling, SCALINGS)
    if inner is not None and not 0 < inner <= 1:
        raise ValueError(f"inner must be None or lie in (0, 1], got {inner}")

    def level(sigma: float) -> Level:
        return Level(level_at(sigma).time, scale_of(sigma), scale_of(sigma) * sigma)

    def velocity(sigma: float):
        slope = slope_of(sigma)
        return speed_of(time_of(sigma), sigma) * (slope * X0 + (slope * sigma + scale_of(sigma)) * EPS)

    for s, t in grid.steps():
        sigma, start = ratio(s), time_of(ratio(s))
        h = time_of(ratio(t)) - start
        if inner is None or t is grid.levels[-1]:
            yield row(level(sigma), X=X + h * velocity(sigma))
            continue
        between = sigma_of(start + inner * h)
        weight = 1 / (2 * inner)
        ahead = X + h * (1 - weight) * velocity(sigma)
        yield row(level(sigma), X=X + inner * h * velocity(sigma), SAVED=ahead)
        yield row(level(between), X=SAVED + h * weight * velocity(between))
