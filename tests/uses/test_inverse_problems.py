"""Measurements of Gaussian data: every gradient has a closed form there, and PiGDM is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import samplers, schedules
from ddpm_jax.samplers import grids
from ddpm_jax.samplers.catalogue import make_table
from ddpm_jax.uses import inverse_problems
from tests.helpers import relative
from tests.uses.common import KEY, gaussian, within

S = schedules.linear(1000)
MEAN, V, NOISE = np.array([0.3, -0.2, 0.1]), 0.4, 0.05
A = np.array([[1.0, 0.5, 0.0], [0.2, -0.3, 1.0]])
Y = np.array([0.6, -0.4])
OPERATOR = lambda x: jnp.asarray(A, x.dtype) @ x
ROWS = samplers.ddim(grids.leading(S, 10)).rows


def levels():
    return [jax.tree.map(lambda leaf, k=k: np.float32(leaf[k]), ROWS) for k in (0, 4, 9)]


def given(n):
    return jnp.tile(jnp.asarray(Y, jnp.float32), (n, 1))


@pytest.mark.parametrize("row", levels(), ids=lambda row: f"t={row.time:g}")
def test_pseudoinverse_is_the_conditional_mean(row):
    """E[x_0 | x_t, y] of normal data with independent pixels: precisions add up."""
    denoise = inverse_problems.pseudoinverse(
        gaussian(MEAN, V * np.eye(3)), OPERATOR, given(4), variance=NOISE, data_variance=V
    )
    x = row.alpha * jnp.asarray(MEAN, jnp.float32)[None] + jax.random.normal(KEY, (4, 3))
    found = denoise(x, row)
    alpha, sigma = float(row.alpha), float(row.sigma)
    precision = np.eye(3) / V + alpha**2 / sigma**2 * np.eye(3) + A.T @ A / NOISE
    right = MEAN[None] / V + alpha / sigma**2 * np.asarray(x, float) + (A.T @ Y / NOISE)[None]
    expected = np.linalg.solve(precision, right.T).T
    assert relative(found.x_0, expected) < 1e-3 if sigma > 0.999 else relative(found.x_0, expected) < 1e-4
    np.testing.assert_allclose(row.alpha * found.x_0 + row.sigma * found.eps, x, atol=1e-5)


@pytest.mark.parametrize("row", levels(), ids=lambda row: f"t={row.time:g}")
def test_posterior_score(row):
    """eps - sigma g A^T (y - A x_0) / variance, g = d x_0 / d x."""
    plain = gaussian(MEAN, V * np.eye(3))
    x = jax.random.normal(KEY, (4, 3))
    found = inverse_problems.posterior_score(plain, OPERATOR, given(4), variance=NOISE)(x, row)
    alpha, sigma = float(row.alpha), float(row.sigma)
    gain = alpha * V / (alpha**2 * V + sigma**2)
    x_0 = MEAN[None] + gain * (np.asarray(x, float) - alpha * MEAN[None])
    eps = (np.asarray(x, float) - alpha * x_0) / sigma - sigma * gain * (Y[None] - x_0 @ A.T) @ A / NOISE
    assert relative(found.eps, eps) < 1e-4


@pytest.mark.parametrize("name", ["ddpm_small", "ddim"])
def test_posterior_step_is_algorithm_1(name):
    """What the sampler makes of x, less step grad |y - A x_0(x)|; noise is the sampler's own."""
    plain, step = gaussian(MEAN, V * np.eye(3)), 0.3
    table = make_table(name, S, 10)
    x = jax.random.normal(KEY, (4, 3))
    z = jax.random.normal(jax.random.key(1), (4, 3))
    denoise = inverse_problems.posterior_step(plain, OPERATOR, given(4), step=step)
    for k in (0, 6):
        row = jax.tree.map(lambda leaf, k=k: np.float32(leaf[k]), table.rows)
        (free,), (moved,) = (samplers.run.step(each, row, (x,), z) for each in (plain, denoise))
        gain = row.alpha * V / (row.alpha**2 * V + row.sigma**2)
        off = Y[None] - np.asarray(plain(x, row).x_0, float) @ A.T
        gradient = -gain * off @ A / np.linalg.norm(off, axis=1, keepdims=True)
        np.testing.assert_allclose(moved, free - step * gradient, atol=2e-5)


def test_pseudoinverse_samples_the_posterior():
    """Mean and covariance of p(x_0 | y), to 5 standard errors and what 200 steps leave."""
    n = 4000
    denoise = inverse_problems.pseudoinverse(
        gaussian(MEAN, V * np.eye(3)), OPERATOR, given(n), variance=NOISE, data_variance=V
    )
    table = make_table("ddpm_small", S, 200)
    found = jax.jit(lambda: samplers.sample(denoise, table, KEY, (n, 3)))()
    covariance = np.linalg.inv(np.eye(3) / V + A.T @ A / NOISE)
    assert within(found, covariance @ (MEAN / V + A.T @ Y / NOISE), covariance)


def test_a_measurement_that_is_met_moves_nothing():
    plain = gaussian(MEAN, V * np.eye(3))
    row, x = levels()[1], jax.random.normal(KEY, (4, 3))
    met = jax.vmap(OPERATOR)(plain(x, row).x_0)
    for denoise in (
        inverse_problems.posterior_score(plain, OPERATOR, met, variance=NOISE),
        inverse_problems.posterior_step(plain, OPERATOR, met, step=1.0),
        inverse_problems.pseudoinverse(plain, OPERATOR, met, variance=NOISE),
    ):
        np.testing.assert_allclose(denoise(x, row).x_0, plain(x, row).x_0, atol=1e-6)


def test_a_learned_variance_is_passed_on():
    plain = gaussian(MEAN, V * np.eye(3))
    scaled = lambda x, row: plain(x, row)._replace(noise_scale=jnp.full_like(x, 0.5))
    row, x = levels()[1], jax.random.normal(KEY, (4, 3))
    for denoise in (
        inverse_problems.posterior_score(scaled, OPERATOR, given(4), variance=NOISE),
        inverse_problems.posterior_step(scaled, OPERATOR, given(4), step=1.0),
        inverse_problems.pseudoinverse(scaled, OPERATOR, given(4), variance=NOISE),
    ):
        assert (denoise(x, row).noise_scale == 0.5).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: inverse_problems.posterior_score(None, OPERATOR, given(1), variance=0), "variance must be positive"),
        (lambda: inverse_problems.pseudoinverse(None, OPERATOR, given(1), variance=-1), "must not be negative, got -1"),
        (
            lambda: inverse_problems.pseudoinverse(None, OPERATOR, given(1), variance=1, data_variance=0),
            "data_variance must be positive, got 0",
        ),
        (lambda: inverse_problems.posterior_step(None, OPERATOR, given(1), step=0), "step must be positive, got 0"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_sampler_that_remembers_is_refused():
    denoise = inverse_problems.posterior_step(gaussian(MEAN, V * np.eye(3)), OPERATOR, given(2), step=1.0)
    with pytest.raises(ValueError, match="posterior_step is for samplers that remember nothing"):
        samplers.sample(denoise, samplers.unipc(grids.leading(S, 5)), KEY, (2, 3))
