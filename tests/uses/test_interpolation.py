"""The way on the sphere, and pictures along it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import samplers, schedules
from ddpm_jax.samplers import grids
from ddpm_jax.uses import interpolation, inversion
from tests.uses.common import KEY, gaussian, smooth

S = schedules.linear(1000)


def test_slerp_is_a_rotation_at_constant_speed():
    a, b = jnp.array([3.0, 0.0]), jnp.array([0.0, 3.0])
    for f in (0.0, 0.25, 0.5, 1.0):
        angle = f * np.pi / 2
        expected = [3 * np.cos(angle), 3 * np.sin(angle)]
        np.testing.assert_allclose(interpolation.slerp(a, b, f), expected, atol=1e-6)


def test_slerp_of_noise_keeps_its_length():
    """The straight line would lose 1 - sqrt(1/2) of it half-way."""
    a, b = jax.random.normal(KEY, (2, 32, 32, 3))
    for f in (0.2, 0.5):
        found = interpolation.slerp(a, b, f)
        assert abs(float(jnp.sqrt((found**2).mean())) - 1) < 0.03
        back = interpolation.slerp(b, a, 1 - f)
        np.testing.assert_allclose(found, back, atol=1e-6)


@pytest.mark.parametrize("of_a", [1.0, 2.0, -1.0])
def test_slerp_of_one_direction_is_the_line(of_a):
    a = jax.random.normal(KEY, (5,))
    np.testing.assert_allclose(interpolation.slerp(of_a * a, a, 0.25), (0.75 * of_a + 0.25) * a, rtol=2e-6)


def test_the_ends_are_the_pictures():
    table, denoise = samplers.ddim(grids.leading(S, 10)), samplers.denoiser(smooth)
    x_0 = jax.random.uniform(KEY, (2, 4, 4, 1), minval=-1)
    found = inversion.invert(denoise, table, x_0)
    inversion.check(found)
    pictures = interpolation.between(denoise, table, *found.x_t, jnp.linspace(0, 1, 5))
    np.testing.assert_allclose(pictures[0], x_0[0], atol=2e-5)
    np.testing.assert_allclose(pictures[-1], x_0[1], atol=2e-5)
    steps = np.abs(np.diff(pictures, axis=0)).mean(axis=(1, 2, 3))
    assert steps.min() > 0.2 * steps.max()


def test_affine_samplers_interpolate_as_slerp_does():
    """With the exact denoiser of N(0, v I) the sampler is a multiplication."""
    table, denoise = samplers.ddim(grids.leading(S, 10)), gaussian(np.zeros(3), 0.3 * np.eye(3))
    a, b = jax.random.normal(KEY, (2, 3))
    ends = interpolation.between(denoise, table, a, b, jnp.array([0.0, 1.0]))
    middle = interpolation.between(denoise, table, a, b, jnp.array([0.5]))
    np.testing.assert_allclose(middle[0], interpolation.slerp(*ends, 0.5), rtol=1e-5)


def test_noise_is_refused():
    with pytest.raises(ValueError, match="a sampler must not draw noise"):
        interpolation.between(smooth, samplers.ddpm(grids.leading(S, 5)), *jnp.zeros((2, 3)), jnp.zeros(1))
