import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import objectives, schedules, timesteps
from tests.helpers import gaussian_model, golden, relative

S = schedules.linear(100)


def test_exact_denoiser_of_gaussian_data_has_the_known_loss():
    """E (eps - E[eps | x_t])^2 = var(eps | x_t) = ac v / (ac v + 1 - ac) for data ~ N(m, v)."""
    mean, variance, n = 0.5, 0.3, 200_000
    x_0 = mean + variance**0.5 * jax.random.normal(jax.random.key(0), (n, 1))
    eps = jax.random.normal(jax.random.key(1), (n, 1))
    for t in (0, 30, 99):
        losses = objectives.simple(gaussian_model(S, mean, variance), S, x_0, jnp.full(n, t), eps)
        ac = S.alphas_cumprod_float64[t]
        expected = ac * variance / (ac * variance + 1 - ac)
        assert abs(losses.mean() - expected) < 5 * losses.std() / n**0.5


def test_it_is_a_mean_over_pixels_and_the_network_is_told_original_times():
    told = []

    def model_fn(x, t):
        told.append(t)
        return jnp.zeros_like(x)

    x_0, eps = np.ones((2, 3, 3, 1), np.float32), np.full((2, 3, 3, 1), 2, np.float32)
    respaced = schedules.respace(S, [3, 70])
    losses = objectives.simple(model_fn, respaced, jnp.asarray(x_0), jnp.array([0, 1]), jnp.asarray(eps))
    np.testing.assert_array_equal(losses, [4, 4])
    np.testing.assert_array_equal(told[0], [3, 70])
    assert told[0].dtype == jnp.float32


def test_openai_mse():
    arrays, _ = golden("openai/training_losses_linear1000")
    prefix = next(k for k in arrays if k.startswith("EPSILON.FIXED_LARGE") and k.endswith(".mse"))
    base = prefix.removesuffix(".mse").rsplit(".", 1)[0]
    m, u, b = (jnp.asarray(arrays[f"{base}.{name}"][:3]) for name in "Mub")

    def model_fn(x, t):
        time = (u[None] * t[:, None] / 1000).reshape(-1, 3, 1, 1)
        return jnp.einsum("oc,nchw->nohw", m, x, precision="highest") + time + b.reshape(1, 3, 1, 1)

    x_0, eps = jnp.asarray(arrays["x_start"]), jnp.asarray(arrays["noise"])
    found = objectives.simple(model_fn, schedules.linear_rescaled(), x_0, jnp.asarray(arrays["t"], jnp.int32), eps)
    assert relative(found, arrays[prefix]) < 2e-6


def test_uniform_timesteps():
    t = jax.vmap(lambda k: timesteps.uniform(k, 8))(jax.random.split(jax.random.key(0), 80_000))
    counts = np.bincount(t, minlength=8)
    assert len(counts) == 8 and (abs(counts - 10_000) < 5 * 100).all()


def test_a_network_of_another_shape_is_refused():
    x = jnp.zeros((2, 3, 3, 1))
    with pytest.raises(ValueError, match=r"like x_t, \(2, 3, 3, 1\), got \(2, 3, 3, 2\)"):
        objectives.simple(lambda x, t: jnp.zeros((2, 3, 3, 2)), S, x, jnp.zeros(2, jnp.int32), x)
