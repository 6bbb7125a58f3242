"""diffusers' float32 numbers, bit for bit: alphas_cumprod, timesteps, steps of length 0, tiny alpha.

What follows from alphas_cumprod is float64 here and float32 there: run in float64 from its own alphas_cumprod,
diffusers agrees with these presets to about 1e-7, and whatever more a trace differs by is rounding in diffusers.
"""

from collections.abc import Callable, Mapping
from math import expm1
from typing import Any

import numpy as np

from ddpm_jax import schedules
from ddpm_jax.names import choose
from ddpm_jax.samplers.configs.square_root import square_root

F32 = np.float32


def linspace(start: float, end: float, num: int) -> np.ndarray:
    """torch.linspace: from both ends, with a fused multiply-add."""
    first, last = np.float64(F32(start)), np.float64(F32(end))
    step = np.float64(F32((F32(end) - F32(start)) / F32(num - 1))) if num > 1 else 0.0
    i = np.arange(num)
    return np.where(i < num // 2, first + step * i, last - step * (num - 1 - i)).astype(F32)


# beta_schedule, of num_train_timesteps, beta_start and beta_end.
BETAS: dict[str, Callable[[int, float, float], np.ndarray]] = {
    "linear": lambda n, start, end: linspace(start, end, n),
    "scaled_linear": lambda n, start, end: linspace(start**0.5, end**0.5, n) ** 2,
    "squaredcos_cap_v2": lambda n, start, end: schedules.cosine(n).betas_float64.astype(F32),
    "sigmoid": lambda n, start, end: schedules.sigmoid(n, beta_start=start, beta_end=end).betas_float64.astype(F32),
    "laplace": lambda n, start, end: schedules.laplace(n).betas_float64.astype(F32),
    # alphas_cumprod = exp(-12 (t + 1) / T): every step keeps the same fraction.
    "exp": lambda n, start, end: np.full(n, min(-expm1(-12 / n), 0.999), F32),
}


def alphas_cumprod(config: Mapping[str, Any]) -> np.ndarray:
    """float32 [T], with 2^-24 for the last where rescale_betas_zero_snr is set; its class has that setting or not.

    Raises:
      ValueError: unknown beta_schedule.
    """
    num = config["num_train_timesteps"]
    if config["trained_betas"] is not None:
        betas = np.asarray(config["trained_betas"], F32)
    else:
        make = choose("beta_schedule", config["beta_schedule"], BETAS)
        betas = make(num, config["beta_start"], config["beta_end"])
    if not config.get("rescale_betas_zero_snr", False):
        return _cumprod(1 - betas)
    root = square_root(_cumprod(1 - betas))
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    keep = root**2
    # The subtractions are diffusers': it goes back to betas and from them to alphas again.
    rescaled = 1 - np.append(keep[:1], keep[1:] / keep[:-1])
    return np.append(_cumprod(1 - rescaled)[:-1], F32(2.0**-24))


def _cumprod(alphas: np.ndarray) -> np.ndarray:
    return np.cumprod(alphas.astype(np.float64)).astype(F32)  # as torch: accumulated in double


def sigmas(config: Mapping[str, Any]) -> np.ndarray:
    """sqrt((1 - alphas_cumprod) / alphas_cumprod), float32 [T]."""
    keep = alphas_cumprod(config)
    return square_root((1 - keep) / keep)


def positions(sigmas: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Where float64 sigmas lie among those of a float32 table, linearly in log sigma: cut to integers, they are times.

    A sigma that is an entry may come out just below it, since its logarithm is float64 and the table's is float32; so
    here every operation has the precision that it has in diffusers.
    """
    logs, values = np.log(table), np.log(np.asarray(sigmas, np.float64))
    # The last entry that is not above: rescaled to zero terminal SNR, the one before the last may be the largest.
    below = logs <= values[:, None]
    low = np.where(below.any(1), len(logs) - 1 - np.argmax(below[:, ::-1], axis=1), 0).clip(max=len(logs) - 2)
    part = np.clip((logs[low] - values) / (logs[low] - logs[low + 1]), 0, 1)
    return (1 - part) * low + part * (low + 1)


def alpha_sigma(sigma: float) -> tuple[np.float32, np.float32]:
    """The alpha and sigma of a variance-preserving x, from the sigma of x / alpha."""
    value = F32(sigma)
    alpha = F32(1) / F32(square_root(value * value + F32(1)))
    return alpha, value * alpha


def log_snr(sigma: float) -> np.float32:
    """log alpha - log sigma of `alpha_sigma`."""
    alpha, sigma_t = alpha_sigma(sigma)
    return np.log(alpha) - np.log(sigma_t)
