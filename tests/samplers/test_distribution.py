"""The law of what a stochastic sampler draws, on Gaussian data, where the best denoiser is known and affine.

A table is affine in x_0 and eps, so with an affine denoiser the mean and covariance of its registers follow exactly.
"""

import jax
import numpy as np
import pytest

from ddpm_jax import samplers, schedules
from ddpm_jax.samplers.catalogue import CATALOGUE, make_table
from ddpm_jax.samplers.denoise import Denoised

S = schedules.linear(1000)
MEAN, VARIANCE = 0.4, 0.3
STOCHASTIC = [name for name, entry in CATALOGUE.items() if entry.stochastic]


def shrinkage(row):
    """E[x_0 | x] = MEAN + shrinkage (x - alpha MEAN)."""
    return row.alpha * VARIANCE / (row.alpha**2 * VARIANCE + row.sigma**2)


def denoise(x, row):
    x_0 = MEAN + shrinkage(row) * (x - row.alpha * MEAN)
    return Denoised(x_0, (x - row.alpha * x_0) / row.sigma)


def law(table):
    """Exact mean and variance of the result, by propagating those of all registers."""
    size = table.rows.update.shape[1]
    mean, covariance = np.zeros(size), np.zeros((size, size))
    covariance[0, 0] = table.init**2
    for k in range(table.num_calls):
        row = samplers.Row(*(leaf[k] for leaf in table.rows))
        keep = shrinkage(row)
        slope = np.array([keep, (1 - row.alpha * keep) / row.sigma])  # of x_0 and eps in X
        offset = np.array([(1 - keep * row.alpha) * MEAN, -row.alpha / row.sigma * (1 - keep * row.alpha) * MEAN])
        linear = row.update[:, :size].copy()
        linear[:, 0] += row.update[:, size : size + 2] @ slope
        mean = linear @ mean + row.update[:, size : size + 2] @ offset
        covariance = linear @ covariance @ linear.T + np.outer(row.update[:, -1], row.update[:, -1])
    return mean[0], covariance[0, 0]


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_law_approaches_that_of_the_data(name):
    errors = []
    for n in (100, 200, 400):
        mean, variance = law(make_table(name, S, n))
        errors.append(abs(mean - MEAN) + abs(variance / VARIANCE - 1))
    # All are of first order at least; fixed_small still lacks 3.5 % of the variance at 400 steps.
    assert errors[-1] < 0.35 * errors[0] and errors[-1] < 0.04, errors


@pytest.mark.parametrize("name", STOCHASTIC)
def test_samples_have_that_law(name):
    table, n = make_table(name, S, 25), 40_000
    mean, variance = law(table)
    x = np.asarray(jax.jit(lambda: samplers.sample(denoise, table, jax.random.key(1), (n, 1)))(), np.float64)
    assert abs(x.mean() - mean) < 5 * np.sqrt(variance / n)
    assert abs(x.var() / variance - 1) < 5 * np.sqrt(2 / n)
