import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate
from scipy.stats import norm

from ddpm_jax.special import gaussians
from tests.helpers import relative

PIXELS = np.arange(256) / 127.5 - 1
RNG = np.random.RandomState(0)


def test_kl_is_its_integral(x64):
    for m_1, v_1, m_2, v_2 in [(0.3, 0.5, -0.2, 1.7), (1.0, 2.0, 1.0, 2.1)]:
        p, q = norm(m_1, v_1**0.5), norm(m_2, v_2**0.5)
        expected = integrate.quad(lambda x, p=p, q=q: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -15, 15)[0]
        assert gaussians.kl_nats(m_1, np.log(v_1), m_2, np.log(v_2)) == pytest.approx(expected, rel=1e-8)


def test_kl_of_equal_gaussians_is_exactly_0_and_of_nearly_equal_ones_is_not_rounded_away():
    x = jnp.asarray(RNG.randn(1000), jnp.float32)
    np.testing.assert_array_equal(gaussians.kl_nats(x, 3 * x, x, 3 * x), 0)
    # log(v1 / v2) = r: (exp(r) - 1 - r) / 2 = r^2 / 4 + ..; 1 + r itself keeps four digits of this r, its KL none.
    r = jnp.float32(2.0**-12)
    assert gaussians.kl_nats(0.0, r, 0.0, 0.0) == pytest.approx(float(r) ** 2 / 4, rel=2e-3)


@pytest.mark.parametrize("mean, std", [(0.1, 0.01), (-0.9, 0.3), (1.0, 0.003), (0.5, 2.0)])
def test_bins_sum_to_1(mean, std):
    x_0 = jnp.asarray(PIXELS, jnp.float32)
    log_p = gaussians.discretized_log_likelihood(x_0, jnp.full(256, mean), jnp.full(256, 2 * np.log(std), jnp.float32))
    # 256 bins of at least 1e-12; the sum of float32 differences telescopes up to their rounding.
    assert abs(np.exp(np.asarray(log_p, np.float64)).sum() - 1) < 256 * 6e-8


def test_bins_are_those_of_the_normal_distribution(x64):
    std = 0.02
    lower, upper = np.append(-np.inf, PIXELS[1:] - 1 / 255), np.append(PIXELS[:-1] + 1 / 255, np.inf)
    for mean in (0.0, 0.99, -1.0):
        expected = norm(mean, std).cdf(upper) - norm(mean, std).cdf(lower)
        log_variance = jnp.full(256, 2 * np.log(std))
        log_p = gaussians.discretized_log_likelihood(jnp.asarray(PIXELS), jnp.full(256, mean), log_variance)
        assert np.abs(np.exp(log_p) - expected).max() < 6e-4  # two values of a tanh that is off by 3e-4 at most


def test_tanh_is_rounded_to_the_last_bit_and_has_its_derivative(x64):
    for dtype in (jnp.float32, jnp.float64):
        x = jnp.linspace(-9, 9, 100_001).astype(jnp.float32)
        expected = np.tanh(np.asarray(x, np.float64))
        with jax.enable_x64(dtype == jnp.float64):
            found, slope = jax.jvp(gaussians._tanh, (x,), (jnp.ones_like(x),))
        assert found.dtype == jnp.float32
        assert (
            np.abs(np.asarray(found, np.float64) - expected).max() < 1.0e-7
        )  # half an ulp is 3e-8 below 1; jnp.tanh is off by 2.6e-7
        assert relative(slope, 1 - expected**2) < 2e-7


def test_gradients_stay_finite_far_out():
    x_0 = jnp.asarray([-1.0, -0.5, 0.0, 0.5, 1.0], jnp.float32)
    for mean, log_variance in [(100.0, -20.0), (0.0, -40.0), (-3.0, 5.0)]:
        loss = lambda m, lv: gaussians.discretized_log_likelihood(x_0, m, lv).sum()
        grads = jax.grad(loss, (0, 1))(jnp.full(5, mean), jnp.full(5, log_variance))
        assert all(np.isfinite(g).all() for g in grads)


def test_data_outside_the_range_is_refused():
    x = jnp.asarray([[0.0, 127.5, 255.0]], jnp.float32)
    with pytest.raises(ValueError, match=r"x_0 must lie in \[-1, 1\], got values in \[0, 255\]"):
        gaussians.discretized_log_likelihood(x, x, x)
    with pytest.raises(ValueError, match=r"x_0 must lie in \[-1, 1\], got values in \[nan"):
        gaussians.discretized_log_likelihood(x * np.nan, x, x)
