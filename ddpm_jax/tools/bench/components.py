"""Images as the principal components of real ones: features that no network makes."""

import numpy as np
from numpy.typing import NDArray

from ddpm_jax.evaluate.samples import moments
from ddpm_jax.evaluate.samples.moments import Gaussian

COMPONENTS = 64


def projection(real: NDArray[np.uint8], components: int = COMPONENTS) -> NDArray[np.float64]:
    """[H W C, D]: the first principal axes of real images [N, H, W, C], all axes where pixels are no more than that."""
    pixels = flat(real)
    count = min(components, pixels.shape[1])
    return np.linalg.eigh(np.atleast_2d(np.cov(pixels, rowvar=False)))[1][:, ::-1][:, :count]


def flat(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """[N, H W C], pixels in [-1, 1]."""
    return images.reshape(len(images), -1) / 127.5 - 1


def gaussian(images: NDArray[np.uint8], axes: NDArray[np.float64]) -> Gaussian:
    """Mean and covariance of images [N, H, W, C] along the axes of `projection`: what Fréchet distances are between."""
    return moments.of(flat(images) @ axes).gaussian
