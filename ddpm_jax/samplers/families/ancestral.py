"""Ancestral sampling (DDPM) on any grid, with fixed, learned and analytic variances."""

from collections.abc import Iterator, Sequence
from math import log, sqrt
from typing import Literal, get_args

from ddpm_jax.names import unknown
from ddpm_jax.process import VarianceType
from ddpm_jax.samplers.grids import Grid, Level, Pairs
from ddpm_jax.samplers.table import X0, Row, X, Z, row, sampler

LastStep = Literal["mean", "sample"]


def transition_variance(s: Level, t: Level) -> float:
    """Variance of q(x_s | x_t) for a level t cleaner than s: beta of one step as long as from t to s.

    sigma_s^2 - (alpha_s sigma_t / alpha_t)^2, which is 1 - (alpha_s / alpha_t)^2 for a variance-preserving process, as
    a product: where alphas are near 1 the differences of their squares lose the digits that sigmas have.
    """
    difference = s.sigma * t.alpha - t.sigma * s.alpha
    return difference * (s.sigma * t.alpha + t.sigma * s.alpha) / t.alpha**2


def posterior_variance(s: Level, t: Level) -> float:
    """Variance of q(x_t | x_s, x_0) for a level t cleaner than s.

    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 7, for a step of any length.
    """
    return t.sigma**2 / s.sigma**2 * transition_variance(s, t)


@sampler
def ddpm(
    grid: Grid | Pairs, *, variance: VarianceType | Sequence[float] = "fixed_large", last_step: LastStep = "mean"
) -> Iterator[Row]:
    """x_t = mean of q(x_t | x_s, pred_x_0) + std z, for neighbours s, t of the grid.

    Source: Ho et al. 2020 (arXiv:2006.11239), algorithm 2 with the mean of eq. 7; strides as Nichol & Dhariwal 2021
    (arXiv:2102.09672), eq. 19, and their eq. 15 for "learned_range".

    Args:
      grid: levels of any process.
      variance: "fixed_small", posterior_variance(s, t); "fixed_large", transition_variance(s, t); "learned" and
        "learned_range", what a `denoiser` with the same variance says; or N numbers, as from `analytic_variances`.
        "learned" is the variance of the steps of the training, whatever the grid; "learned_range" follows the grid.
      last_step: "mean" adds no noise on the way to the last level; "sample" treats it as any other step, as diffusers
        does on grids that do not end in t = 0.

    Raises:
      ValueError: unknown variance or last_step; another number of variances than steps.
    """
    given = [variance] * grid.num_steps if isinstance(variance, str) else [float(v) for v in variance]
    if len(given) != grid.num_steps:
        raise ValueError(f"variance must be a name or one number a step, {grid.num_steps}, got {len(given)}")
    if last_step not in get_args(LastStep):
        raise unknown("last_step", last_step, get_args(LastStep))
    decoder = TINY
    for k, ((s, t), law) in enumerate(zip(grid.steps(), given, strict=True), start=1):
        beta = transition_variance(s, t)
        coef1 = beta * t.alpha / s.sigma**2
        coef2 = t.sigma**2 * s.alpha / (s.sigma**2 * t.alpha)
        noisy = k < grid.num_steps or last_step == "sample"
        value, spread = _variance_and_spread(law, s, t, TINY if noisy else decoder, noisy)
        decoder = posterior_variance(s, t)
        x = coef1 * X0 + coef2 * X + (sqrt(value) if noisy else 0) * Z
        yield row(s, variance=value, spread=spread, mean=(coef1, coef2), X=x)


TINY = 1e-20  # diffusers' lower bound of a variance; its root disappears in float32


def _variance_and_spread(law: str | float, s: Level, t: Level, floor: float, noisy: bool) -> tuple[float, float]:
    """(variance, spread) of a Row.

    The noise-free last step still has a variance, and classifier guidance weighs gradients with it. As in the code of
    Ho et al., of Nichol & Dhariwal and of Dhariwal & Nichol it is the scale of the decoder, beta_tilde of the step
    before; but "fixed_small" is beta_tilde itself, 0 on the way to the clean image.
    """
    exact = posterior_variance(s, t)
    small, large = exact or floor, transition_variance(s, t)
    if not isinstance(law, str):
        return law, 0.0
    if law == "fixed_small":
        return (small if noisy else exact), 0.0
    if law == "fixed_large":
        return (large if noisy else small), 0.0
    if law == "learned":
        return 1.0, 1.0
    if law == "learned_range":
        return small, log(large / small)
    raise unknown("variance", law, get_args(VarianceType))


def analytic_variances(grid: Grid, gammas: Sequence[float]) -> list[float]:
    """beta_tilde + (sigma_s alpha_t / alpha_s - sqrt(sigma_t^2 - beta_tilde))^2 (1 - sigma_s^2 Gamma_s): optimal in KL.

    Source: Bao et al. 2022 (arXiv:2201.06503), eq. 8-9 with lambda^2 = beta_tilde. Their clipping by the range of the
    data is not applied.

    Args:
      grid: levels of a variance-preserving process.
      gammas: [N] mean of |score|^2 / d over q(x_s), for every level s that the network is called at.

    Raises:
      ValueError: another number of gammas than steps, or one outside [0, 1/sigma_s^2]; a level with alpha = 0.
    """
    if len(gammas) != grid.num_steps:
        raise ValueError(f"gammas must be one number a step, {grid.num_steps}, got {len(gammas)}")
    variances = []
    for (s, t), gamma in zip(grid.steps(), gammas, strict=True):
        if not 0 <= gamma * s.sigma**2 <= 1:
            raise ValueError(f"gamma must lie in [0, {1 / s.sigma**2:.6g}] at time {s.time:g}, got {gamma}")
        if s.alpha == 0:
            raise ValueError(f"a score says nothing about the variance of x_0 where alpha is 0, at time {s.time:g}")
        small = posterior_variance(s, t)
        along = s.sigma * t.alpha / s.alpha - sqrt(t.sigma**2 - small)
        variances.append(small + along**2 * (1 - s.sigma**2 * float(gamma)))
    return variances
