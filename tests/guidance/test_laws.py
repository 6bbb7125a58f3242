"""Guidance in closed form: Gaussian mixtures of three classes, whose scores, classifiers and samples are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import guidance, samplers, schedules
from ddpm_jax.guidance import CLASSIFIER_FREE
from ddpm_jax.samplers import grids
from tests.helpers import relative, relative_rms

SCHEDULE = schedules.linear(1000)
MEANS = np.array([[-1.5, 0.5], [0.8, 1.0], [1.0, -1.2]])
STDS, WEIGHTS = np.array([0.3, 0.5, 0.8]), np.array([0.5, 0.2, 0.3])
NOTHING = 3


def log_joint(x, alpha, sigma):
    """log p(y) p(x | y) of every class, [B, 3], at x = alpha x_0 + sigma eps [B, 2]."""
    variance = alpha**2 * jnp.asarray(STDS, x.dtype) ** 2 + sigma**2
    square = jnp.sum((x[:, None] - alpha * jnp.asarray(MEANS, x.dtype)[None]) ** 2, axis=-1)
    return (jnp.log(jnp.asarray(WEIGHTS, x.dtype)) - jnp.log(variance))[None] - square / (2 * variance)[None]


def level(t):
    """(alpha, sigma) of the network's time t [B]: all examples are at the same one."""
    alphas = jnp.asarray(SCHEDULE.alphas_cumprod_float64, float)[t[0].astype(jnp.int32)]
    return jnp.sqrt(alphas), jnp.sqrt(1 - alphas)


def network(x, t, told):
    """The exact eps = -sigma grad log p(x | y), or of the whole mixture where y is NOTHING."""
    alpha, sigma = level(t)

    def log_p(x):
        log_each = log_joint(x, alpha, sigma)
        picked = jnp.take_along_axis(log_each, jnp.minimum(told, NOTHING - 1)[:, None], axis=1)[:, 0]
        return jnp.where(told == NOTHING, jax.nn.logsumexp(log_each, axis=1), picked).sum()

    return -sigma * jax.grad(log_p)(x)


def classifier_gradient(labels):
    """Of log p(y | x_t), by Bayes."""

    def gradient(x, t):
        alpha, sigma = level(t)
        log_p = lambda x: jax.nn.log_softmax(log_joint(x, alpha, sigma))[jnp.arange(len(x)), labels].sum()
        return jax.grad(log_p)(x)

    return gradient


def drawn(denoise, shape):
    """table -> samples, the same start and noise for all tables of one length; their numbers are data."""
    x_T = jax.random.normal(jax.random.key(0), shape, float)

    def draw(table):
        noise = jax.random.normal(jax.random.key(1), (table.num_calls, *shape), float)
        return samplers.sample(denoise, table, None, shape, x_T=x_T, noise=noise)

    run = jax.jit(draw)
    return lambda table: np.asarray(run(jax.tree.map(np.asarray, table)))


def between_classes(labels):
    """Classifier-free guidance between each example's class and the mixture."""
    answers = guidance.asked(network, labels, jnp.full_like(labels, NOTHING))
    return guidance.guided(answers, samplers.denoiser, CLASSIFIER_FREE)


def of_the_mixture(n):
    return samplers.denoiser(lambda x, t: network(x, t, jnp.full(n, NOTHING)))


GRID = grids.leading(SCHEDULE, 250)
TABLES = {"ddpm": samplers.ddpm(GRID, variance="fixed_small"), "ddim": samplers.ddim(GRID)}


@pytest.mark.parametrize("sampler", TABLES)
def test_scale_1_samples_the_conditional_and_scale_0_the_mixture(sampler, x64):
    """Mean and variance of every class, then of all, within 4 standard errors."""
    n = 3000
    draw = drawn(between_classes(jnp.arange(n) % 3), (n, 2))
    found = draw(guidance.on(TABLES[sampler], CLASSIFIER_FREE, scale=1.0))
    for y in range(3):
        of_class = found[y::3]
        assert np.abs((of_class.mean(0) - MEANS[y]) / STDS[y]).max() < 4 / np.sqrt(n / 3)
        assert np.abs(of_class.var(0) / STDS[y] ** 2 - 1).max() < 4 * np.sqrt(2 / (n / 3))
    found = draw(guidance.on(TABLES[sampler], CLASSIFIER_FREE, scale=0.0))
    mean = WEIGHTS @ MEANS
    variance = WEIGHTS @ (MEANS**2 + STDS[:, None] ** 2) - mean**2
    assert np.abs((found.mean(0) - mean) / np.sqrt(variance)).max() < 4 / np.sqrt(n)


@pytest.mark.parametrize("sampler", TABLES)
def test_the_exact_classifier_guides_as_classifier_free_guidance_does(sampler, x64):
    """eps_u - sigma scale grad log p(y | x) = eps_u + scale (eps_c - eps_u): the same pictures, any sampler."""
    labels, table = jnp.arange(12) % 3, TABLES[sampler]
    free = drawn(between_classes(labels), (12, 2))
    by_classifier = drawn(guidance.score_shifted(of_the_mixture(12), classifier_gradient(labels)), (12, 2))
    for scale in (0.5, 1.0, 4.0):
        expected = free(guidance.on(table, CLASSIFIER_FREE, scale=scale))
        assert relative(by_classifier(guidance.on_classifier(table, scale=scale)), expected) < 1e-10


@pytest.mark.parametrize("at", ["x_t", "mean"])
def test_score_and_mean_shift_converge_to_each_other(at):
    """To first order in the length of a step, with the gradient at either point: twice the steps, half of it."""
    labels, shape, key = jnp.arange(300) % 3, (300, 2), jax.random.key(0)
    gradient, differences = classifier_gradient(labels), []
    mean = samplers.Runner(lambda: guidance.mean_shifted(of_the_mixture(300), gradient, at=at), shape, 1000)
    score = samplers.Runner(lambda: guidance.score_shifted(of_the_mixture(300), gradient), shape, 1000)
    for steps in (125, 250, 500, 1000):
        table = samplers.ddpm(grids.leading(SCHEDULE, steps), variance="fixed_small")
        table = guidance.on_classifier(table, scale=2.0)
        differences.append(relative_rms(mean(table, key), score(table, key)))
    orders = np.log2(np.array(differences[:-1]) / differences[1:])
    assert (orders > 0.8).all() and (orders < 1.2).all(), (differences, orders)


# ----------------------------------------------------------------------------------------- what a scale w > 1 samples

VARIANCE, CENTER = 0.4, 1.2  # of p(x_0 | y), where p(x_0) is N(0, 1)


def guided_line(scale, steps):
    """(slope, offset) of x_0 = slope x_T + offset, which DDIM with guidance computes between the two Gaussians."""

    def network(x, t, told):
        alpha, sigma = level(t)
        conditional = sigma * (x - alpha * CENTER) / (alpha**2 * VARIANCE + sigma**2)
        return jnp.where(told[:, None], conditional, sigma * x)

    table = guidance.on(samplers.ddim(grids.leading(SCHEDULE, steps)), CLASSIFIER_FREE, scale=scale)
    answers = guidance.asked(network, jnp.ones(2, bool), jnp.zeros(2, bool))
    denoise = guidance.guided(answers, samplers.denoiser, CLASSIFIER_FREE)
    ends = samplers.sample(denoise, table, None, (2, 1), x_T=jnp.array([[0.0], [1.0]]), noise=jnp.zeros((steps, 2, 1)))
    return float(ends[1, 0] - ends[0, 0]), float(ends[0, 0])


def tilted(scale):
    """(mean, variance) of p(x) p(y | x)^scale, up to its constant."""
    weight = scale * (1 / VARIANCE - 1)  # of the observation: 1 / VARIANCE = 1 + its precision
    return weight * CENTER / (1 - VARIANCE) / (1 + weight), 1 / (1 + weight)


def sampled(scale):
    """(mean, variance) at the end of the flow of the guided score: the variance is VARIANCE^scale.

    From d x / d a = (scale / 2 a) (x - (x - sqrt(a) CENTER) / V), V = 1 - a (1 - VARIANCE), a = alpha^2 from 0 to 1.
    """
    b = (np.arange(200_000) + 0.5) / 200_000  # sqrt(a)
    integral = np.mean((1 - (1 - VARIANCE) * b**2) ** (-scale / 2 - 1))
    return scale * CENTER * VARIANCE ** (scale / 2) * integral, VARIANCE**scale


@pytest.mark.parametrize("scale", [1.0, 2.0, 4.0])
def test_what_a_scale_samples_is_not_the_tilted_density(scale, x64):
    """DDIM converges to the flow of the guided score; p(x) p(y | x)^w is broader, and its mean is another."""
    errors = []
    for steps in (125, 250, 500):
        slope, offset = guided_line(scale, steps)
        mean, variance = sampled(scale)
        errors.append(max(abs(offset - mean), abs(slope**2 / variance - 1)))
    assert errors[0] > 1.6 * errors[1] > 2.5 * errors[2] and errors[2] < 0.05, errors
    off_mean, off_variance = tilted(scale)[0] - mean, tilted(scale)[1] / variance
    if scale == 1:
        assert abs(off_mean) < 1e-6 and off_variance == pytest.approx(1)
    else:
        assert abs(off_mean) > 0.05 and off_variance > 1.25, (mean, off_mean, off_variance)
