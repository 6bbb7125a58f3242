"""Euler's method with churn as diffusers has it: noise drawn after the network was called."""

from collections.abc import Iterator
from math import hypot, inf
from typing import Literal

from ddpm_jax.names import choose
from ddpm_jax.process import PredictionType
from ddpm_jax.samplers.families.euler import raised
from ddpm_jax.samplers.grids import Grid
from ddpm_jax.samplers.grids.sigma_grids import churned, ratio, scaled
from ddpm_jax.samplers.table import EPS, X0, Row, Z, row, sampler


@sampler
def euler_late_churn(
    grid: Grid,
    *,
    s_churn: float,
    s_tmin: float = 0.0,
    s_tmax: float = inf,
    s_noise: float = 1.0,
    prediction: PredictionType | Literal["edm"] = "eps",
    sigma_data: float = 1.0,
) -> Iterator[Row]:
    """x_t = x_hat + (sigma_t - sigma_hat) (x_hat - pred) / sigma_hat,  x_hat = x_s + std z, all of x / alpha.

    The network is called at x_s, before the noise, and pred is the x_0 that its output would mean at x_hat; so what it
    comes to depends on what the network predicts.

    Source: diffusers 0.42.1 (EulerDiscreteScheduler and EDMEulerScheduler, s_churn); compare `euler` with `hat`.

    Args:
      grid: levels of `sigma_grids`.
      s_churn: as in `sigma_grids.churned`; with 0 this is `euler`.
      s_tmin: the same.
      s_tmax: the same.
      s_noise: inflates the noise.
      prediction: of the network; "edm" under `denoise.preconditioned`.
      sigma_data: of `denoise.preconditioned`.

    Raises:
      ValueError: unknown prediction.
    """
    hats = churned(grid, lambda sigma: scaled(sigma, 0.0), s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax)
    hats, kicks = raised(grid, hats, s_noise)
    for (s, t), h, kick in zip(grid.steps(), map(ratio, hats), kicks, strict=False):
        x = X0 + ratio(s) * EPS + kick * Z
        sine, cosine = ratio(s) / hypot(ratio(s), sigma_data), sigma_data / hypot(ratio(s), sigma_data)
        output = sine * X0 / sigma_data - cosine * EPS  # of an EDM network; minus v where sigma_data is 1
        std = hypot(h, sigma_data)
        pred = choose(
            "prediction",
            prediction,
            {
                "eps": x - h * EPS,
                "x_0": X0,
                "v": cosine**2 * x + sine * output,
                "edm": (sigma_data / std) ** 2 * x + h * sigma_data / std * output,
            },
        )
        yield row(s, X=t.alpha * (x + (ratio(t) - h) / h * (x - pred)))
