"""Euler, Heun and midpoint in any time and scaling of x, with churn: the samplers before EDM, on equal terms."""

from collections.abc import Callable, Iterator, Sequence
from math import exp, log, log1p, sqrt

from ddpm_jax.names import choose
from ddpm_jax.samplers.families.euler import raised
from ddpm_jax.samplers.grids import Grid, Level
from ddpm_jax.samplers.grids.sigma_grids import LevelAt, ratio
from ddpm_jax.samplers.table import EPS, SAVED, X0, Row, X, Z, row, sampler

Betas = tuple[float, float]
BETAS: Betas = (19.9, 0.1)
"""beta_d and beta_min of the continuous variance-preserving process."""

# Each: (time of sigma, sigma of time, d sigma / d time as a function of (time, sigma)).
Clock = tuple[Callable[[float], float], Callable[[float], float], Callable[[float, float], float]]
LINEAR: Clock = (lambda sigma: sigma, lambda t: t, lambda t, sigma: 1.0)
EXPLODING: Clock = (lambda sigma: sigma**2, sqrt, lambda t, sigma: 1 / (2 * sigma))


def preserving(betas: Betas) -> Clock:
    """sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)."""
    beta_d, beta_min = betas
    return (
        lambda sigma: (sqrt(beta_min**2 + 2 * beta_d * log(1 + sigma**2)) - beta_min) / beta_d,
        lambda t: sqrt(exp(beta_d * t**2 / 2 + beta_min * t) - 1),
        lambda t, sigma: (beta_min + beta_d * t) * (sigma + 1 / sigma) / 2,
    )


def vp_betas(sigma_min: float, sigma_max: float, *, time_min: float = 1e-3) -> Betas:
    """(beta_d, beta_min) of the process with sigma(time_min) = sigma_min and sigma(1) = sigma_max.

    Source: Karras et al. 2022 (arXiv:2206.00364), appendix C.1; its code fits schedule "vp" so to other grids' ends.

    beta_min may come out negative, and sigma(t) is then 0 shortly before t = 0, where samplers end nevertheless.

    Raises:
      ValueError: not 0 < sigma_min < sigma_max and 0 < time_min < 1.
    """
    if not (0 < sigma_min < sigma_max and 0 < time_min < 1):
        raise ValueError(
            "vp_betas needs 0 < sigma_min < sigma_max and 0 < time_min < 1, "
            f"got {sigma_min}, {sigma_max} and time_min {time_min}"
        )
    beta_d = 2 * (log1p(sigma_max**2) - log1p(sigma_min**2) / time_min) / (1 - time_min)
    return beta_d, log1p(sigma_max**2) - beta_d / 2


# Each: (s as a function of sigma, d s / d sigma).
SCALINGS: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "none": (lambda sigma: 1.0, lambda sigma: 0.0),
    "vp": (lambda sigma: 1 / sqrt(1 + sigma**2), lambda sigma: -sigma / (1 + sigma**2) ** 1.5),
}


def clock_of(schedule: str, betas: Betas | None) -> Clock:
    """t of sigma, sigma of t and its speed by name.

    Raises:
      ValueError: unknown schedule; betas for another than "vp".
    """
    if betas is not None and schedule != "vp":
        raise ValueError(f"betas are those of schedule 'vp', got {betas} with {schedule!r}")
    return choose("schedule", schedule, {"linear": LINEAR, "ve": EXPLODING, "vp": preserving(betas or BETAS)})


@sampler
def edm_ode(
    grid: Grid,
    level_at: LevelAt,
    *,
    schedule: str = "linear",
    scaling: str = "none",
    inner: float | None = 1.0,
    betas: Betas | None = None,
    hat: Sequence[Level] | None = None,
    s_noise: float = 1.0,
) -> Iterator[Row]:
    """dx / dt = s' x_0 + (s sigma)' eps  for  x = s(t) (x_0 + sigma(t) eps), by one- or two-stage Runge-Kutta in t.

    With h = t_next - t, d at t and d' at t + inner h:  x_next = x + h ((1 - 1 / (2 inner)) d + 1 / (2 inner) d').

    Before a step, noise may be raised: x becomes s_hat / s x + s_hat sqrt(sigma_hat^2 - sigma^2) s_noise z.

    Source: Karras et al. 2022 (arXiv:2206.00364), eq. 4, table 1 and algorithms 1 and 3 (appendix D.2); the noise is
    that of algorithm 2 in this time and scaling.

    Args:
      grid: the sigmas, ending in 0.
      level_at: what the network is told at a sigma.
      schedule: sigma(t): "linear", t; "ve", sqrt(t); "vp", of the continuous process with beta from 0.1 to 20.
      scaling: s(t): "none", 1; "vp", 1 / sqrt(1 + sigma^2).
      inner: None is Euler, 1 Heun, 0.5 the midpoint rule; in (0, 1]: EDM's alpha. The last step is Euler's.
      betas: (beta_d, beta_min) of schedule "vp", such as `vp_betas` gives; (19.9, 0.1) by default.
      hat: levels to which noise is raised before each step, from `sigma_grids.churned`; none by default.
      s_noise: inflates that noise.

    Raises:
      ValueError: unknown schedule or scaling; inner outside (0, 1]; betas for another schedule; hat of another length
        than the steps.
    """
    time_of, sigma_of, speed_of = clock_of(schedule, betas)
    scale_of, slope_of = choose("scaling", scaling, SCALINGS)
    if inner is not None and not 0 < inner <= 1:
        raise ValueError(f"inner must be None or lie in (0, 1], got {inner}")

    def level(sigma: float) -> Level:
        return Level(level_at(sigma).time, scale_of(sigma), scale_of(sigma) * sigma)

    def velocity(sigma: float):
        slope = slope_of(sigma)
        return speed_of(time_of(sigma), sigma) * (slope * X0 + (slope * sigma + scale_of(sigma)) * EPS)

    hat, kicks = raised(grid, hat, s_noise)
    for i, (s, t) in enumerate(zip(hat, grid.levels[1:], strict=True)):
        sigma, start = ratio(s), time_of(ratio(s))
        h = (time_of(ratio(t)) if t.sigma else 0.0) - start
        # The noise of a step precedes its call, so the row before adds it.
        u = ratio(t if t is grid.levels[-1] else hat[i + 1])
        after = lambda x, t=t, u=u, kick=kicks[i + 1]: scale_of(u) * (x / scale_of(ratio(t)) + kick * Z)
        if inner is None or t is grid.levels[-1]:
            yield row(level(sigma), X=after(X + h * velocity(sigma)))
            continue
        between = sigma_of(start + inner * h)
        weight = 1 / (2 * inner)
        yield row(level(sigma), X=X + inner * h * velocity(sigma), SAVED=X + h * (1 - weight) * velocity(sigma))
        yield row(level(between), X=after(SAVED + h * weight * velocity(between)))
