"""diffusers' float32 numbers, bit for bit, where their rounding shows: timesteps, steps of length 0, tiny alpha.

Everywhere else the float64 schedule is used.
"""

import numpy as np

from ddpm_jax.samplers.configs.common import BETAS, Config

F32 = np.float32


def linspace(start: float, end: float, num: int) -> np.ndarray:
    """torch.linspace: from both ends, with a fused multiply-add."""
    first, last = np.float64(F32(start)), np.float64(F32(end))
    step = np.float64(F32((F32(end) - F32(start)) / F32(num - 1))) if num > 1 else 0.0
    i = np.arange(num)
    return np.where(i < num // 2, first + step * i, last - step * (num - 1 - i)).astype(F32)


def alphas_cumprod(config: Config) -> np.ndarray:
    """float32 [T], with 2^-24 for the last where rescale_betas_zero_snr is set; its class has that setting or not."""
    num = config["num_train_timesteps"]
    if config["trained_betas"] is not None:
        betas = np.asarray(config["trained_betas"], F32)
    elif config["beta_schedule"] == "linear":
        betas = linspace(config["beta_start"], config["beta_end"], num)
    elif config["beta_schedule"] == "scaled_linear":
        betas = linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, num) ** 2
    else:
        betas = BETAS[config["beta_schedule"]](num, config["beta_start"], config["beta_end"]).betas_float64.astype(F32)
    if not config.get("rescale_betas_zero_snr", False):
        return _cumprod(1 - betas)
    root = np.sqrt(_cumprod(1 - betas))
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    keep = root**2
    # The subtractions are diffusers': it goes back to betas and from them to alphas again.
    rescaled = 1 - np.append(keep[:1], keep[1:] / keep[:-1])
    return np.append(_cumprod(1 - rescaled)[:-1], F32(2.0**-24))


def _cumprod(alphas: np.ndarray) -> np.ndarray:
    return np.cumprod(alphas.astype(np.float64)).astype(F32)  # as torch: accumulated in double


def sigmas(config: Config) -> np.ndarray:
    """sqrt((1 - alphas_cumprod) / alphas_cumprod), float32 [T]."""
    keep = alphas_cumprod(config)
    return np.sqrt((1 - keep) / keep)


def alpha_sigma(sigma: float) -> tuple[np.float32, np.float32]:
    """The alpha and sigma of a variance-preserving x, from the sigma of x / alpha."""
    value = F32(sigma)
    alpha = F32(1) / np.sqrt(value * value + F32(1))
    return alpha, value * alpha


def log_snr(sigma: float) -> np.float32:
    """log alpha - log sigma of `alpha_sigma`."""
    alpha, sigma_t = alpha_sigma(sigma)
    return np.log(alpha) - np.log(sigma_t)
