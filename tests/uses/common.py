"""Exact denoisers of Gaussian data, a network without a closed form, and commands as a user types them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import cli, samplers


def gaussian(mean, covariance):
    """The exact denoise(x, row) of data ~ N(mean, covariance), x [B, D]: told by the row's own level."""
    mean, covariance = np.asarray(mean, float), np.asarray(covariance, float)
    values, vectors = np.linalg.eigh(covariance)

    def denoise(x, row):
        of = lambda a: jnp.asarray(a, x.dtype)
        shrink = row.alpha * of(values) / (row.alpha**2 * of(values) + row.sigma**2)
        centred = x - row.alpha * of(mean)[None]
        x_0 = of(mean)[None] + ((centred @ of(vectors)) * shrink[None]) @ of(vectors.T)
        return samplers.Denoised(x_0, (x - row.alpha * x_0) / row.sigma)

    return denoise


def within(found, mean, covariance, errors=5.0):
    """Whether samples [N, D] have this mean and covariance, to so many standard errors."""
    found, mean, covariance = np.asarray(found, np.float64), np.asarray(mean), np.asarray(covariance)
    n, variances = len(found), np.diag(covariance)
    of_mean = np.sqrt(variances / n)
    of_covariance = np.sqrt((np.outer(variances, variances) + covariance**2) / n)
    far = np.abs(found.mean(0) - mean) / of_mean
    spread = np.abs(np.cov(found.T) - covariance) / of_covariance
    return max(far.max(), spread.max()) < errors


def smooth(x, t):
    """A network of eps without any closed form, of one channel."""
    return 0.4 * x + 0.1 * jnp.sin(3 * x) + (t / 2000).reshape(-1, *(1,) * (x.ndim - 1))


KEY = jax.random.key(3)


def call(*words):
    cli.main([str(word) for word in words])


def refused(capsys, *words):
    """The one line that a call ends with."""
    capsys.readouterr()  # what others have said
    with pytest.raises(SystemExit) as stop:
        call(*words)
    error = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(error) == 1, error
    return error[0].removeprefix("ddpm-jax: ")


def pixels_of(path):
    return np.asarray(Image.open(path))


def images_of(path):
    with np.load(path) as file:
        return file["images"]
