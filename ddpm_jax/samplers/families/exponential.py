"""Exponential integrators in the log-SNR: what DPM-Solver, DEIS, UniPC and SA-Solver have in common.

Between two levels s and t, with lambda = log(alpha / sigma), h = lambda_t - lambda_s and m the network's x_0 or eps,
the reverse process is

    x_t = keep x_s + integral over u in [0, 1] of weight(u) m(lambda_s + u h) du + std z.

These solvers replace m by the polynomial in u through known values of it, so all that a step needs is the moments

    moments[k] = integral of weight(u) u^k du.

eta is the rate at which noise is renewed: 0 is the probability flow, 1 the reverse SDE of the same speed.

    predict x_0:  keep = sigma_t / sigma_s e^(-eta h)   weight = alpha_t c e^(-c (1 - u)),  c = (1 + eta) h
                  std = sigma_t sqrt(1 - e^(-2 eta h))
    predict eps:  keep = alpha_t / alpha_s              weight = (1 + eta) sigma_t c e^(-c (1 - u)),  c = -h
                  std = sigma_t sqrt(eta (e^(2h) - 1))

Source: Lu et al. 2022 (arXiv:2211.01095), propositions 4.1 and 5.1 (x_0); Lu et al. 2022 (arXiv:2206.00927),
proposition 3.1 (eps); Xue et al. 2023 (arXiv:2309.05019), eq. 12-14, for eta = tau^2.
"""

from collections.abc import Sequence
from math import expm1, factorial, inf, log, sqrt
from typing import Literal, NamedTuple, get_args

import numpy as np

from ddpm_jax.names import unknown
from ddpm_jax.samplers.grids import Level
from ddpm_jax.samplers.grids.sigma_grids import ratio
from ddpm_jax.samplers.table import EPS, X0, Z

Predict = Literal["x_0", "eps"]
OUTPUT = {"x_0": X0, "eps": EPS}


class Interval(NamedTuple):
    """x_t = keep x_s + sum_k moments[k] c_k + std z for m = sum_k c_k u^k."""

    keep: float
    moments: np.ndarray  # [4]; where t is clean, only moments[0] is finite
    scale: float  # of the weight, and c: what moments[1] would be with e^(-c (1 - u)) = 1 is scale c / 2
    c: float
    std: float


def log_snr(level: Level) -> float:
    """lambda = log(alpha / sigma), half the log signal-to-noise ratio; infinite at the clean level.

    Raises:
      ValueError: alpha is 0.
    """
    return -log(ratio(level)) if level.sigma else inf


def phi(k: int, z: float) -> float:
    """phi_k(z) = sum_n z^n / (n + k)!, so phi_0 = exp and phi_{k+1}(z) = (phi_k(z) - 1 / k!) / z."""
    if abs(z) < 1:  # where the recursion cancels
        return sum(z**n / factorial(n + k) for n in range(20))
    value = expm1(z) / z
    for j in range(1, k):
        value = (value - 1 / factorial(j)) / z
    return value


def interval(s: Level, t: Level, predict: Predict, eta: float = 0.0) -> Interval:
    """The step from s to t of the process with this eta, exactly.

    Raises:
      ValueError: unknown predict; eta below 0; a stochastic step towards more noise, or with eps to a clean level.
    """
    if predict not in get_args(Predict):
        raise unknown("predict", predict, get_args(Predict))
    if not eta >= 0:
        raise ValueError(f"eta must be at least 0, got {eta}")
    decay = t.sigma * s.alpha / (s.sigma * t.alpha)  # e^-h
    if eta and decay > 1:
        raise ValueError(f"eta must be 0 towards more noise, got {eta}")
    if eta and predict == "eps" and t.sigma == 0:
        raise ValueError(f"with predict='eps' and eta > 0 a grid cannot end at sigma = 0, got eta {eta}")
    h = log_snr(t) - log_snr(s)
    if predict == "x_0":
        scale, c = t.alpha, (1 + eta) * h
        first = t.alpha * (1 - decay ** (1 + eta))
        keep, std = t.sigma / s.sigma * decay**eta, t.sigma * sqrt(1 - decay ** (2 * eta))
    else:
        scale, c = (1 + eta) * t.sigma, -h
        rise = t.alpha * s.sigma / s.alpha  # sigma_t e^h, finite also at sigma_t = 0
        first = (1 + eta) * (t.sigma - rise)
        keep, std = t.alpha / s.alpha, sqrt(eta * (rise**2 - t.sigma**2))
    higher = [scale * c * factorial(k) * phi(k + 1, -c) if t.sigma else inf for k in (1, 2, 3)]
    return Interval(keep, np.array([first, *higher]), scale, c, std)


Known = Sequence[tuple[Level, np.ndarray]]


def advance(
    x: np.ndarray,
    s: Level,
    t: Level,
    known: Known,
    predict: Predict,
    eta: float = 0.0,
    moments: np.ndarray | None = None,
) -> np.ndarray:
    """x_t from x_s, with m the polynomial through the known values.

    Args:
      x: x_s as a combination of registers.
      s, t: levels; where their log-SNR is the same, the network adds nothing.
      known: (level, what the network said there), 1 to 4 of them; 1 where t is clean.
      predict: what that is.
      eta: as in the head of this file.
      moments: in place of those of the interval, for methods that approximate some.

    Raises:
      ValueError: as `interval`.
    """
    return kept(x, s, t, predict, eta) + integral(s, t, known, predict, eta, moments)


def kept(x: np.ndarray, s: Level, t: Level, predict: Predict, eta: float = 0.0) -> np.ndarray:
    """keep x_s + std z: the part of `advance` without the network."""
    step = interval(s, t, predict, eta)
    return step.keep * x + step.std * Z


def integral(
    s: Level, t: Level, known: Known, predict: Predict, eta: float = 0.0, moments: np.ndarray | None = None
) -> np.ndarray:
    """The part of `advance` with the network."""
    h = log_snr(t) - log_snr(s)
    if abs(h) < 1e-12:  # the same level, but for rounding: the idle end of a grid
        return np.zeros_like(X0)
    moments = interval(s, t, predict, eta).moments if moments is None else moments
    u = [0.0 if level == s else (log_snr(level) - log_snr(s)) / h for level, _ in known]
    # Weights of the values: exact for polynomials of degree below len(known).
    weights = np.linalg.solve(np.vander(u, increasing=True).T, moments[: len(known)])
    return np.sum([w * m for w, (_, m) in zip(weights, known, strict=True)], axis=0)


def step_orders(num_steps: int, order: int, *, lower_order_final: bool, clean: bool) -> list[int]:
    """The order of every step of a multistep method: at most the number of values known by then.

    Args:
      num_steps: N.
      order: wanted.
      lower_order_final: also at most the number of steps left, as DPM-Solver does for few steps.
      clean: the last level is: there the log-SNR is infinite, and only order 1 has a limit.
    """
    orders = [min(order, i + 1, num_steps - i if lower_order_final else order) for i in range(num_steps)]
    return [*orders[:-1], 1] if clean else orders


def checked_order(name: str, order: int, largest: int) -> int:
    """order, a whole number in [1, largest].

    Raises:
      ValueError: it is not.
    """
    if order not in range(1, largest + 1):
        raise ValueError(f"{name} must be a whole number in [1, {largest}], got {order!r}")
    return order
