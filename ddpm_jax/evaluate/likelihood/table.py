"""The bound of a whole data set, timestep by timestep, and what else the same sums say. NumPy, float64."""

from typing import NamedTuple

import numpy as np

from ddpm_jax.evaluate.likelihood.vlb import VlbTerms
from ddpm_jax.schedules import Schedule

PARTS = ("total", "prior", "transitions", "decoder")


class Sums(NamedTuple):
    """Sums over images: of the numbers of a VlbTerms, [T], and of the parts of the bound, [4] as in PARTS."""

    num_images: int
    bits: np.ndarray
    bits_square: np.ndarray
    x_0_mse: np.ndarray
    pred_eps_square: np.ndarray
    parts: np.ndarray
    parts_square: np.ndarray


def empty(num_timesteps: int) -> Sums:
    """Of no image."""
    return Sums(0, *np.zeros((4, num_timesteps)), *np.zeros((2, len(PARTS))))


def add(sums: Sums, terms: VlbTerms, count: int) -> Sums:
    """With the first `count` examples of a batch.

    Raises:
      FloatingPointError: a term that is not finite.
    """
    bits, prior, x_0_mse, _, pred_eps_square = (np.asarray(column, np.float64)[:count] for column in terms)
    finite = np.isfinite(bits) & np.isfinite(x_0_mse) & np.isfinite(pred_eps_square)
    if not finite.all():
        image, t = np.argwhere(~finite)[0]
        raise FloatingPointError(
            f"the bound of image {sums.num_images + image} is not finite at t = {t}: {bits[image, t]} bits, "
            f"squared error {x_0_mse[image, t]}"
        )
    transitions, decoder = bits[:, 1:].sum(axis=1), bits[:, 0]
    parts = np.stack([prior + transitions + decoder, prior, transitions, decoder], axis=1)
    new = (bits, bits**2, x_0_mse, pred_eps_square, parts, parts**2)
    return Sums(sums.num_images + count, *(old + column.sum(axis=0) for old, column in zip(sums[1:], new, strict=True)))


class Estimate(NamedTuple):
    """A mean over images and its standard error, None of a single image."""

    mean: float
    standard_error: float | None


def parts(sums: Sums) -> dict[str, Estimate]:
    """Bits per dimension of the bound: total = prior + transitions (L_t, t > 0) + decoder (L_0).

    The standard error is that of the choice of images and of the noise drawn for them, together.
    """
    means, errors = _mean_and_error(sums.num_images, sums.parts, sums.parts_square)
    known = sums.num_images > 1
    return {
        name: Estimate(float(mean), float(error) if known else None)
        for name, mean, error in zip(PARTS, means, errors, strict=True)
    }


class Table(NamedTuple):
    """A row per t, [T]; the names are those of the columns of the CSV file."""

    timestep: np.ndarray  # what the network is told
    bits_per_dim: np.ndarray  # L_t
    standard_error: np.ndarray  # of L_t; nan for a single image
    x_0_mse: np.ndarray
    eps_mse: np.ndarray
    rate: np.ndarray
    distortion: np.ndarray
    score_square: np.ndarray  # Gamma_t


def table(schedule: Schedule, sums: Sums) -> Table:
    """Means over the images."""
    bits, error = _mean_and_error(sums.num_images, sums.bits, sums.bits_square)
    x_0_mse = sums.x_0_mse / sums.num_images
    snr = schedule.alphas_cumprod_float64 / schedule.one_minus_alphas_cumprod_float64
    prior = sums.parts[PARTS.index("prior")] / sums.num_images
    curve = rate_distortion(bits, prior, x_0_mse)
    gammas = score_square(schedule, sums.pred_eps_square / sums.num_images)
    return Table(np.asarray(schedule.timesteps), bits, error, x_0_mse, snr * x_0_mse, *curve, gammas)


class RateDistortion(NamedTuple):
    """[T]: what a receiver of x_t has paid, bits per dimension, and how far off its guess is, on the scale 0..255."""

    rate: np.ndarray
    distortion: np.ndarray


def rate_distortion(bits_per_dim: np.ndarray, prior_bits_per_dim: float, x_0_mse: np.ndarray) -> RateDistortion:
    """rate_t = prior + sum of L_s over s > t,  distortion_t = 127.5 sqrt(x_0_mse_t).

    The sum of all L_t and the prior is the rate of the lossless image, whose distortion is 0.

    Source: Ho et al. 2020 (arXiv:2006.11239), section 4.3, figure 5 and table 4. The root is of the mean over images.

    Args:
      bits_per_dim: [T] L_t.
      prior_bits_per_dim: of x_T.
      x_0_mse: [T] mean of (x_0 - pred_x_0)^2, images in [-1, 1].
    """
    after = np.append(np.cumsum(bits_per_dim[:0:-1])[::-1], 0.0)
    return RateDistortion(prior_bits_per_dim + after, 127.5 * np.sqrt(x_0_mse))


def score_square(schedule: Schedule, pred_eps_square: np.ndarray) -> np.ndarray:
    """Gamma_t = E |score(x_t)|^2 / d = E pred_eps^2 / sigma_t^2, at most 1 / sigma_t^2.

    What samplers.analytic_variances takes.

    The bound is that of the exact score (E |E[eps | x_t]|^2 <= E |eps|^2 = d). An estimate may lie above it by chance
    where the network knows eps almost exactly, and would mean a negative variance of x_0.

    Source: Bao et al. 2022 (arXiv:2201.06503), eq. 8, with the prediction as the network makes it, not clipped.

    Args:
      schedule: of length T.
      pred_eps_square: [T] mean of pred_eps^2 over data, noise and pixels.
    """
    # 1e-12, so that rounding of the quotient does not lift it above the bound again.
    return np.minimum(pred_eps_square, 1 - 1e-12) / schedule.one_minus_alphas_cumprod_float64


def _mean_and_error(count: int, total: np.ndarray, square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = total / count
    if count == 1:
        return mean, np.full_like(mean, np.nan)
    # Rounding can leave a variance of 0, such as the prior's of equal images, slightly below it.
    variance = np.maximum(square / count - mean**2, 0) * count / (count - 1)
    return mean, np.sqrt(variance / count)
