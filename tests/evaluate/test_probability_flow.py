"""The ODE's density against closed forms: Gaussian data, and a mixture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import samplers, schedules
from ddpm_jax.evaluate import bits_per_dim, dequantize, log_likelihood, path
from ddpm_jax.samplers.denoise import Denoised
from tests.helpers import golden, mixture_model

S = schedules.linear(1000)
# Four pixels with a full covariance, so that the trace is more than a multiple of one number.
MEAN = np.array([0.1, -0.2, 0.0, 0.3])
FACTOR = np.linalg.qr(np.random.RandomState(0).randn(4, 4))[0] * [0.1, 0.2, 0.4, 0.7]
COVARIANCE = FACTOR @ FACTOR.T
IMAGES = MEAN + np.random.RandomState(1).randn(50, 4) @ FACTOR.T


def exact(x, row):
    """What is known of data ~ N(MEAN, COVARIANCE) at x = alpha x_0 + sigma eps, at any level."""
    eigenvalues, basis = (jnp.asarray(a) for a in np.linalg.eigh(COVARIANCE))
    mean = jnp.asarray(MEAN)[None]
    flat = (x.reshape(-1, 4) - row.alpha * mean) @ basis
    shrunk = flat * (row.alpha * eigenvalues / (row.alpha**2 * eigenvalues + row.sigma**2))[None]
    x_0 = (mean + shrunk @ basis.T).reshape(x.shape)
    return Denoised(x_0, (x - row.alpha * x_0) / row.sigma)


def gaussian_log_density(x, mean, covariance):
    residual = np.linalg.solve(np.linalg.cholesky(covariance), (x - mean).T)
    size = len(mean)
    return -0.5 * (residual**2).sum(0) - 0.5 * np.linalg.slogdet(covariance)[1] - size / 2 * np.log(2 * np.pi)


def at_first(schedule):
    """The log density of the images with the noise of the first level, in units of x_0."""
    first = path(schedule, 1)
    return gaussian_log_density(IMAGES, MEAN, COVARIANCE + (first.sigma[0] / first.alpha[0]) ** 2 * np.eye(4))


def density(schedule, num_steps, dtype=float):
    x_0 = jnp.asarray(IMAGES.reshape(-1, 2, 2, 1), dtype)
    found = jax.jit(lambda x_0: log_likelihood(exact, path(schedule, num_steps), x_0, num_probes=None))(x_0)
    return jax.tree.map(np.asarray, found)


def bits(log_density):
    return np.asarray(bits_per_dim(log_density, 4))


@pytest.mark.parametrize(
    "schedule", [S, schedules.cosine(), schedules.zero_terminal_snr(S)], ids=["linear", "cosine", "zero"]
)
def test_it_is_the_density_of_gaussian_data(schedule, x64):
    found, steps = density(schedule, 200), path(schedule, 1)
    # The noise of the first level costs (0.01 / std)^4 / 4 nats, the prior alpha_T^2 std^2: both below 1e-4.
    assert abs(bits(found.log_density).mean() - bits(gaussian_log_density(IMAGES, MEAN, COVARIANCE)).mean()) < 1e-3
    # And image by image: all that is wrong is that x_T is not exactly N(0, I).
    alpha, sigma = steps.alpha[-1], steps.sigma[-1]
    x_T = found.x_T.reshape(-1, 4)
    prior = gaussian_log_density(x_T, alpha * MEAN, alpha**2 * COVARIANCE + sigma**2 * np.eye(4))
    standard = gaussian_log_density(x_T, np.zeros(4), np.eye(4))
    assert np.abs(bits(found.log_density + prior - standard) - bits(at_first(schedule))).max() < 1e-5


def test_order_of_convergence_is_4(x64):
    fine = density(S, 640).log_density
    error = [np.abs(density(S, n).log_density - fine).max() for n in (20, 40, 80)]
    orders = np.log2(np.array(error[:-1]) / error[1:])
    assert (3.7 < orders).all() and (orders < 4.5).all(), (error, orders)


# A mixture of three Gaussians in 48 dimensions, seen through a network that is told times.
ARRAYS, _ = golden("openai/bpd_cosine25_large_noclip")
MU, SPREAD, WEIGHT = (ARRAYS[f"gmm_{name}"] for name in ("mu", "s", "w"))
MU = MU.reshape(3, 48)
LOG_SIGMAS = np.log(S.one_minus_alphas_cumprod_float64 / S.alphas_cumprod_float64) / 2


def mixture_denoiser(prediction):
    """Between timesteps the process is that of log(sigma/alpha) linear in time."""

    def alphas_cumprod(time):
        return jax.nn.sigmoid(-2 * jnp.interp(time, jnp.arange(1000, dtype=float), jnp.asarray(LOG_SIGMAS)))

    return samplers.denoiser(mixture_model(ARRAYS, prediction, alphas_cumprod=alphas_cumprod), prediction)


def mixture_images(n):
    rng = np.random.RandomState(2)
    which = rng.choice(3, n, p=WEIGHT / WEIGHT.sum())
    return jnp.asarray((MU[which] + SPREAD[which, None] * rng.randn(n, 48)).reshape(n, 3, 4, 4))


def mixture_log_density(x):
    flat = np.asarray(x).reshape(len(x), 1, 48)
    variance = SPREAD**2 + np.exp(2 * LOG_SIGMAS[0])
    log_r = -0.5 * ((flat - MU) ** 2).sum(-1) / variance - 24 * np.log(2 * np.pi * variance) + np.log(WEIGHT)
    return np.logaddexp.reduce(log_r, axis=1) - np.log(WEIGHT.sum())


@pytest.mark.parametrize("prediction", ["eps", "x_0", "v"])
def test_a_mixture_through_every_prediction(prediction, x64):
    x_0 = mixture_images(4)
    run = jax.jit(lambda x_0: log_likelihood(mixture_denoiser(prediction), path(S, 250), x_0, num_probes=None))
    found = run(x_0).log_density
    # float32 times, and the prior (alpha_T^2 = 4e-5), are what is left: 1e-4 bits a dimension.
    assert np.abs(bits_per_dim(found, 48) - bits_per_dim(mixture_log_density(x_0), 48)).max() < 1e-3


def test_random_probes_are_unbiased_and_follow_the_example(x64):
    # 400 times the same image: its examples differ in their probes only.
    x_0 = jnp.tile(jnp.asarray(IMAGES[:1].reshape(1, 2, 2, 1)), (400, 1, 1, 1))
    key, steps = jax.random.key(5), path(S, 30)

    @functools.partial(jax.jit, static_argnames="num_probes")
    def run(x_0, first_index, num_probes):
        found = log_likelihood(exact, steps, x_0, key, num_probes=num_probes, first_index=first_index)
        return found.log_density

    exact_trace, found = run(x_0[:1], 0, None)[0], np.asarray(run(x_0, 0, 1))
    assert found.std() > 0.1
    assert abs(found.mean() - exact_trace) < 5 * found.std() / 20
    np.testing.assert_allclose(run(x_0[:7], 150, 1), found[150:157], rtol=1e-9)
    # The mean of 16 probes is 4 times closer.
    assert 3.4 < found.std() / np.asarray(run(x_0, 0, 16)).std() < 4.7


def test_float32_is_enough(highest):
    found = density(S, 200, np.float32).log_density
    assert found.dtype == np.float32
    assert abs(bits(found).mean() - bits(at_first(S)).mean()) < 1e-3


def test_dequantized_images_and_their_bits(x64):
    grey = jnp.full((5000, 2, 2, 1), 37 / 127.5 - 1, float)
    found = np.asarray(dequantize(grey, jax.random.key(0)))
    inside = (found - grey) * 127.5
    assert np.abs(inside).max() < 0.5 + 1e-12 and abs(inside.mean()) < 5 * np.sqrt(1 / 12 / inside.size)
    assert inside.var() == pytest.approx(1 / 12, rel=0.05)
    np.testing.assert_array_equal(dequantize(grey[:3], jax.random.key(0), first_index=40), found[40:43])
    # All grey levels equally likely: 8 bits, whatever the number of dimensions.
    density = -4 * np.log(256 / 127.5)
    assert float(bits_per_dim(jnp.asarray(density), 4)) == pytest.approx(8, abs=1e-12)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: path(S, 0), r"num_steps must be a whole number in \[1, 1000000\], got 0"),
        (lambda: path(schedules.linear(1), 5), "a path needs a schedule of at least 2 timesteps, got 1"),
        (lambda: log_likelihood(exact, path(S, 1), jnp.zeros((1, 2, 2, 1))), "key must not be None unless num_probes"),
        (
            lambda: log_likelihood(exact, path(S, 1), jnp.zeros((1, 2, 2, 1)), jax.random.key(0), num_probes=0),
            "num_probes must be at least 1, or None for the exact trace, got 0",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
