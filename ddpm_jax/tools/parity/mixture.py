"""The network of every comparison of samplers: the exact answers for a mixture of Gaussians, in float64.

Written with NumPy, so that one and the same function answers both sides; neither side's framework is in it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

SHAPE = (2, 4, 4, 3)  # [B, H, W, C]

# answer(x [B, H, W, C] float64, time) -> like x, or [B, H, W, 2C] with a variance beside it
Answer = Callable[[np.ndarray, float], np.ndarray]


class Exact(NamedTuple):
    """What the best possible network says at x = sqrt(abar) x_0 + sqrt(1 - abar) eps."""

    eps: np.ndarray
    x_0: np.ndarray
    v: np.ndarray


# p(x_0) = sum_k w_k N(mu_k, s_k^2 I): mu [K, ...] like images, s and w [K].
MU = np.random.default_rng(0).uniform(-1.5, 1.5, (3, *SHAPE[1:]))
S, W = np.array([0.15, 0.25, 0.2]), np.array([0.5, 0.3, 0.2])


def exact(x: np.ndarray, abar: float) -> Exact:
    """E[eps | x], E[x_0 | x] and E[v | x] for data from a mixture of Gaussians.

    Args:
      x: [B, ...], images like the means.
      abar: alphas_cumprod at x, in (0, 1).
    """
    s, w = S, W
    size = x[0].size
    mu = MU.reshape(1, len(w), size)
    root = np.sqrt(abar)
    variance = abar * s**2 + 1 - abar
    residual = x.reshape(len(x), 1, size) - root * mu
    logits = np.log(w) - size / 2 * np.log(variance) - (residual**2).sum(-1) / (2 * variance)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights = (weights / weights.sum(1, keepdims=True))[:, :, None]
    eps = np.sqrt(1 - abar) * (weights * residual / variance[:, None]).sum(1)
    x_0 = (weights * (mu + (root * s**2 / variance)[:, None] * residual)).sum(1)
    eps, x_0 = eps.reshape(x.shape), x_0.reshape(x.shape)
    return Exact(eps, x_0, root * eps - np.sqrt(1 - abar) * x_0)


def at_table(alphas_cumprod: np.ndarray, output: str = "eps") -> Answer:
    """eps, x_0 or v at a timestep of this table; between timesteps interpolated."""
    table = np.asarray(alphas_cumprod, np.float64)
    # At abar = 0 or 1 a mixture has no exact answer that every scheduler can use.
    level = lambda time: float(np.clip(np.interp(time, np.arange(table.size), table), 1e-9, 1 - 1e-9))
    return lambda x, time: getattr(exact(x, level(time)), output)


def angle(x: np.ndarray, time: float) -> np.ndarray:
    """v at alpha = cos(pi time / 2): the levels of IPNDMScheduler."""
    return exact(x, float(np.clip(np.cos(np.pi * time / 2) ** 2, 1e-9, 1 - 1e-9))).v


def preconditioned(sigma_data: float, sign: int) -> Answer:
    """F with x_0 = c_skip x + sign c_out F(c_in x, log(sigma) / 4), as Karras et al. 2022 (arXiv:2206.00364), eq. 7."""

    def answer(x: np.ndarray, time: float) -> np.ndarray:
        sigma = np.exp(4 * time)
        std = np.hypot(sigma, sigma_data)
        x_0 = exact(x * std / np.hypot(1, sigma), 1 / (1 + sigma**2)).x_0
        return sign * (x_0 - sigma_data**2 / std * x) * std / (sigma * sigma_data)

    return answer


def with_variance(answer: Answer, of_value: Callable[[np.ndarray], np.ndarray]) -> Answer:
    """The answer and, as further channels, of_value of numbers between -1 and 1."""
    return lambda x, time: np.concatenate([answer(x, time), of_value(np.tanh(2 * x + time / 1000))], axis=-1)
