"""Gaussian data with the exact denoiser: the bound is the true negative log-likelihood plus a gap known term by term.

Expectations are sums: over the 256 grey levels with their probabilities, and over evenly spaced nodes for eps. Only
marginals of eps matter to a sum of terms, so all t share the nodes, and nothing is drawn.

Where p(x_{t-1} | x_t) has the exact mean and variance s, and q(x_{t-1} | x_t) = N(mean, V) with
V = beta_tilde + coef1^2 Var(x_0 | x_t), the gap of a term is KL(N(., V) || N(., s)) = (log s/V + V/s - 1) / 2; the
prior's is KL(q(x_T) || N(0, I)); the decoder's is KL(q(x_0 | x_1) || p(x_0 | x_1)) between two laws on grey levels.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from ddpm_jax import schedules
from ddpm_jax.evaluate import vlb_terms
from tests.helpers import gaussian_model

S = schedules.linear(1000)
BIN = 2 / 255
LEVELS = np.arange(256) / 127.5 - 1
MEAN, STD = 0.1, 0.2
# Of the grey level: that of the Gaussian, and of the place within a bin (Sheppard). Noise of 0.01 hides the bins.
VARIANCE = STD**2 + BIN**2 / 12
NODES = 40


def paper_cdf(x):
    """The distribution function of the decoder, in float32 as there: its upper tail ends at 1 - 6e-8."""
    return np.float32(0.5) * (1 + np.tanh((np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)).astype(np.float32)))


def bins(mean, std, cdf=ndtr):
    """Probabilities of the 256 grey levels under N(mean, std^2), the first and last bin open; [..., 256]."""
    edges = (LEVELS[:-1] + LEVELS[1:]) / 2
    below = cdf((edges - np.expand_dims(mean, -1)) / std)
    ones = np.ones_like(below[..., :1])
    return np.diff(np.concatenate([0 * ones, below, ones], axis=-1), axis=-1)


P_DATA = bins(MEAN, STD)
NLL = -np.sum(P_DATA * np.log2(P_DATA))  # bits, the entropy of the data

KEEP, NOISE = S.alphas_cumprod_float64, S.one_minus_alphas_cumprod_float64
POSTERIOR = VARIANCE * NOISE / (KEEP * VARIANCE + NOISE)  # Var(x_0 | x_t)


def reverse_variance():
    """V_t of q(x_{t-1} | x_t) for t = 1 .. T-1, from Bayes' rule on (x_{t-1}, x_t) alone."""
    before, beta = KEEP[:-1] * VARIANCE + NOISE[:-1], S.betas_float64[1:]
    return 1 / (1 / before + (1 - beta) / beta)


def log_variances(variance):
    """log of p's variance at every t, [T] float64."""
    beta, small = S.betas_float64, S.betas_float64[1:] * NOISE[:-1] / NOISE[1:]
    chosen = {"fixed_small": small, "fixed_large": beta[1:], "learned": reverse_variance()}[variance]
    # The decoder integrates over bins, which widen it by BIN^2 / 12: the best has that much less.
    decoder = POSTERIOR[0] - BIN**2 / 12 if variance == "learned" else small[0]
    return np.log(np.append(decoder, chosen))


def decoder_gap(std):
    """E KL(q(x_0 | x_1) || p(x_0 | x_1)) in nats, summed over grey levels and integrated over x_1 on a fine grid."""
    alpha, sigma = KEEP[0] ** 0.5, NOISE[0] ** 0.5
    x_1 = np.linspace(MEAN - 5 * STD, MEAN + 5 * STD, 20_001)
    joint = P_DATA * np.exp(-((x_1[:, None] - alpha * LEVELS) ** 2) / (2 * sigma**2)) / np.sqrt(2 * np.pi * sigma**2)
    marginal = joint.sum(axis=1)
    mean = MEAN + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (x_1 - alpha * MEAN)
    p = np.maximum(bins(mean, std, paper_cdf), 1e-12)  # as the decoder has it
    q = joint / marginal[:, None]
    kl = np.sum(q * np.log(np.maximum(q, 1e-300) / p), axis=1)
    return np.sum(kl * marginal) * (x_1[1] - x_1[0])


def known_gap(variance):
    """The bound less the true negative log-likelihood, bits: [prior, transitions, decoder]."""
    chosen = np.exp(log_variances(variance))
    exact = reverse_variance()
    transitions = (np.log(chosen[1:] / exact) + exact / chosen[1:] - 1) / 2
    end = KEEP[-1] * VARIANCE + NOISE[-1]
    prior = (end + KEEP[-1] * MEAN**2 - 1 - np.log(end)) / 2
    return np.array([prior, transitions.sum(), decoder_gap(chosen[0] ** 0.5)]) / np.log(2)


def bound(variance):
    """E of the bound, bits."""
    nodes = np.linspace(-6.5, 6.5, NODES)  # the trapezoidal rule: exact to many digits for a decaying integrand
    weights = np.exp(-(nodes**2) / 2)
    x_0 = jnp.asarray(np.repeat(LEVELS, NODES)[:, None])
    weight = np.outer(P_DATA, weights / weights.sum()).ravel()
    noise = jnp.broadcast_to(np.tile(nodes, 256)[:, None], (S.num_timesteps, 256 * NODES, 1))
    exact, table = gaussian_model(S, MEAN, VARIANCE), jnp.asarray(log_variances(variance))

    def model_fn(x, t):
        learned = jnp.broadcast_to(table[t.astype(jnp.int32)][:, None], x.shape)
        return jnp.concatenate([exact(x, t), learned], -1) if variance == "learned" else exact(x, t)

    terms = jax.jit(lambda x_0, noise: vlb_terms(model_fn, S, x_0, noise=noise, variance=variance, clip=None))
    return float(weight @ np.asarray(terms(x_0, noise).total_bits_per_dim))


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
def test_the_bound_is_the_likelihood_plus_the_known_gap(variance, x64):
    assert abs(bound(variance) - NLL - known_gap(variance).sum()) < 1e-3


def test_the_gap_vanishes_with_the_best_variance_and_with_no_other():
    assert known_gap("learned").sum() < 1e-3
    assert known_gap("fixed_small").sum() > 0.01
    assert known_gap("fixed_large").sum() > 0.01
