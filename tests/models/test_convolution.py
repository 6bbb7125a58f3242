"""The CPU's 3x3 convolution is the convolution: values, derivatives of both kinds, and nowhere else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models import convolution
from ddpm_jax.models.convolution import conv_general_dilated, direct

OPTIONS = {"dimension_numbers": convolution.IMAGES}


def convolve(x, kernel):
    return conv_general_dilated(x, kernel, (1, 1), "SAME", **OPTIONS)


def data(dtype, shape=(2, 16, 18, 64), outputs=65):
    """An image higher than one pair of rows and not square, so that axes and edges cannot be confused."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], shape, dtype)
    kernel = jax.random.normal(keys[1], (3, 3, shape[-1], outputs), dtype) / (9 * shape[-1]) ** 0.5
    return x, kernel, jax.random.normal(keys[2], (*shape[:3], outputs), dtype)


def multiplications(lowered):
    """Of all convolutions in a compiled program, by XLA's count of its floating point operations."""
    return lowered.compile().cost_analysis()["flops"]


@pytest.mark.usefixtures("x64")
def test_is_the_convolution_in_float64():
    x, kernel, _ = data(jnp.float64)
    np.testing.assert_allclose(jax.jit(convolve)(x, kernel), direct(x, kernel), rtol=0, atol=1e-13)


@pytest.mark.usefixtures("x64")
def test_is_as_exact_as_the_plain_one_in_float32():
    x, kernel, _ = data(jnp.float32)
    exact = direct(x.astype(jnp.float64), kernel.astype(jnp.float64))
    errors = [np.abs(np.asarray(f(x, kernel), np.float64) - exact).max() for f in (jax.jit(convolve), direct)]
    assert errors[0] < 2 * errors[1] < 1e-5, errors


@pytest.mark.usefixtures("x64")
def test_derivatives():
    """Reverse, forward, and forward over reverse in both arguments, against those of the plain one."""
    x, kernel, y = data(jnp.float64, (1, 16, 32, 64), 64)
    tangents = jnp.cos(x), jnp.sin(kernel)

    def gradient(f):
        # tanh, so that the second derivative is not zero.
        return jax.grad(lambda x, kernel: jnp.vdot(jnp.tanh(f(x, kernel)), y), (0, 1))

    def second(f):
        return jax.jit(lambda: jax.jvp(gradient(f), (x, kernel), tangents))()

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10), second(convolve), second(direct))
    found, expected = (jax.jvp(f, (x, kernel), tangents)[1] for f in (convolve, direct))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_of_examples_is_that_of_the_batch():
    x, kernel, _ = data(jnp.float32, (3, 16, 32, 64))
    found = jax.vmap(lambda x: convolve(x[None], kernel)[0])(x)
    np.testing.assert_allclose(found, convolve(x, kernel), rtol=0, atol=1e-5)


def test_a_third_fewer_multiplications_on_a_cpu():
    x, kernel, _ = data(jnp.float32, (2, 32, 32, 128), 128)
    ours, plain = (multiplications(jax.jit(f).lower(x, kernel)) for f in (convolve, direct))
    assert 0.65 < ours / plain < 0.72


def test_the_kernels_gradient_has_a_third_fewer_multiplications():
    x, kernel, dy = data(jnp.float32, (4, 32, 16, 64), 64)
    gradient = lambda f: jax.jit(lambda dy: jax.vjp(lambda kernel: f(x, kernel), kernel)[1](dy)[0])
    ours, plain = (multiplications(gradient(f).lower(dy)) for f in (convolve, direct))
    assert 0.65 < ours / plain < 0.75


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_get_the_plain_one(platform):
    x, kernel, _ = data(jnp.float32)
    found, expected = (
        jax.jit(f).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text().count("stablehlo.convolution")
        for f in (convolve, direct)
    )
    assert found == expected == 1
    x, kernel, dy = data(jnp.float32, (2, 16, 16, 64))
    gradient = jax.jit(lambda x, kernel: jax.vjp(convolve, x, kernel)[1](dy))
    text = gradient.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == 2


@pytest.mark.parametrize(
    ("shape", "dtype", "strides", "padding"),
    [
        ((2, 16, 16, 32), jnp.float32, (1, 1), "SAME"),
        ((1, 16, 16, 64), jnp.float32, (1, 1), "SAME"),
        ((2, 17, 16, 64), jnp.float32, (1, 1), "SAME"),
        ((2, 16, 16, 64), jnp.bfloat16, (1, 1), "SAME"),
        ((2, 16, 16, 64), jnp.float32, (2, 2), "SAME"),
        ((2, 16, 16, 64), jnp.float32, (2, 2), ((1, 1), (1, 1))),
    ],
)
def test_the_plain_one_elsewhere(shape, dtype, strides, padding):
    x, kernel, _ = data(dtype, shape)
    found = conv_general_dilated(x, kernel, strides, padding, **OPTIONS)
    expected = jax.lax.conv_general_dilated(x, kernel, strides, padding, **OPTIONS)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)
