"""Structural similarity of images and what they should be.

At each pixel, with means, variances and covariance under a window,
ssim = (2 m_x m_y + c_1)(2 s_xy + c_2) / ((m_x^2 + m_y^2 + c_1)(s_x^2 + s_y^2 + c_2)), c_i = (k_i 255)^2.

Source: Wang et al. 2004, IEEE Transactions on Image Processing 13, eq. 13, with their window, a Gaussian of 11 x 11 and
sigma 1.5, and k = (0.01, 0.03). The mean is over the pixels whose window lies in the image, and over the channels: what
skimage's structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False) and torchmetrics compute.
skimage's defaults are others (a flat 7 x 7, unbiased variances), and Wang et al. take the luminance alone.
"""

import numpy as np
from numpy.typing import NDArray

from ddpm_jax.evaluate.samples.points import Estimate, Float
from ddpm_jax.evaluate.samples.psnr import check_images, standard_error

SIZE, SIGMA = 11, 1.5
C_1, C_2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def of(images: NDArray[np.uint8], targets: NDArray[np.uint8]) -> Estimate:
    """The mean over images of their mean similarity, at most 1, which equal images have, and the mean's error.

    Args:
      images: uint8 [N, H, W, C].
      targets: uint8 [N, H, W, C].

    Raises:
      ValueError: not uint8 [N, H, W, C] of one shape, fewer than 2 images, or images smaller than the window.
    """
    check_images(images, targets)
    if min(images.shape[1:3]) < SIZE:
        raise ValueError(f"SSIM's window is {SIZE} x {SIZE}: images of {images.shape[1]} x {images.shape[2]} have none")
    found = [_of_one(x.astype(np.float64), y.astype(np.float64)) for x, y in zip(images, targets, strict=True)]
    values = np.array(found)
    return Estimate(float(values.mean()), standard_error(values))


def _of_one(x: Float, y: Float) -> float:
    m_x, m_y = _windowed(x), _windowed(y)
    s_xx, s_yy, s_xy = _windowed(x * x) - m_x**2, _windowed(y * y) - m_y**2, _windowed(x * y) - m_x * m_y
    top = (2 * m_x * m_y + C_1) * (2 * s_xy + C_2)
    return float((top / ((m_x**2 + m_y**2 + C_1) * (s_xx + s_yy + C_2))).mean())


def _windowed(x: Float) -> Float:
    """Means under the window, where it lies in the image: [H - 10, W - 10, C]."""
    offsets = np.arange(SIZE) - SIZE // 2
    weights = np.exp(-0.5 * (offsets / SIGMA) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        length = x.shape[axis] - SIZE + 1
        parts = (np.take(x, np.arange(i, i + length), axis) * w for i, w in enumerate(weights))
        x = np.sum(list(parts), axis=0)
    return x
