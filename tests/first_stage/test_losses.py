"""Losses of first stages: closed forms, and what taming and latent-diffusion computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import first_stage
from ddpm_jax.models.autoencoder import DiagonalGaussian
from tests.first_stage.golden import nhwc
from tests.helpers import golden, relative

RNG = np.random.RandomState(0)


def of_params(params):
    mean, log_variance = jnp.split(params, 2, axis=-1)
    return DiagonalGaussian(mean, jnp.clip(log_variance, -30.0, 20.0))


@pytest.mark.parametrize("which", ["params", "other"])
def test_diagonal_gaussian_as_recorded(which):
    arrays, _ = golden("first_stage/diagonal_gaussian")
    params, other, noise, target = (nhwc(arrays[name]) for name in ("params", "other", "noise", "target"))
    prefix = "" if which == "params" else "other."
    own = params if which == "params" else other
    gaussian = of_params(own)
    assert relative(gaussian.sample(noise), nhwc(arrays[f"{prefix}sample"])) < 1e-5
    assert relative(gaussian.kl(), arrays[f"{prefix}kl"]) < 1e-5
    assert relative(gaussian.nll(target), arrays[f"{prefix}nll"]) < 1e-5
    if which == "params":
        np.testing.assert_array_equal(gaussian.mode(), nhwc(arrays["mode"]))
        np.testing.assert_array_equal(gaussian.log_variance, nhwc(arrays["logvar"]))
        assert relative(gaussian.kl(of_params(other)), arrays["kl_other"]) < 1e-5
        clipped = jax.grad(lambda params: jnp.sum(of_params(params).log_variance))(params)
        np.testing.assert_array_equal(clipped, nhwc(arrays["grad_logvar_sum"]))
        return
    for name, value in (("kl", lambda params: jnp.sum(of_params(params).kl())),
                        ("sample", lambda params: jnp.sum(of_params(params).sample(noise) * target)),
                        ("nll", lambda params: jnp.sum(of_params(params).nll(target)))):  # fmt: skip
        assert relative(jax.grad(value)(other), nhwc(arrays[f"other.grad_{name}"])) < 1e-5, name


def test_divergence_of_two_gaussians():
    """0 of itself; to N(0, I) the default; of one number, its closed form; E_p log p / q over samples."""
    make = lambda: DiagonalGaussian(*(jnp.asarray(0.5 * RNG.randn(2, 3, 2, 4), jnp.float32) for _ in range(2)))
    p, q = make(), make()
    np.testing.assert_allclose(p.kl(p), 0, atol=1e-6)
    zero = jnp.zeros_like(p.mean)
    np.testing.assert_allclose(p.kl(DiagonalGaussian(zero, zero)), p.kl(), rtol=1e-6)
    eps = jnp.asarray(RNG.randn(4000, *p.mean.shape), jnp.float32)
    ratios = jax.vmap(lambda eps: q.nll(p.sample(eps)) - p.nll(p.sample(eps)))(eps)
    error = 5 * np.asarray(ratios).std(axis=0) / np.sqrt(len(eps))
    assert (np.abs(np.asarray(ratios).mean(axis=0) - p.kl(q)) < error).all()


@pytest.mark.parametrize("name", ["hinge", "vanilla"])
def test_adversarial_losses_as_recorded(name):
    arrays, _ = golden("first_stage/gan_losses")
    real, fake = (jnp.asarray(arrays[side]) for side in ("real", "fake"))
    loss, grads = jax.value_and_grad(first_stage.LOSSES[name], (0, 1))(real, fake)
    assert float(loss) == pytest.approx(float(arrays[name]), rel=1e-5)
    for grad, side in zip(grads, ("real", "fake"), strict=True):
        assert relative(grad, arrays[f"{name}.grad_{side}"]) < 1e-5
    nothing = first_stage.LOSSES[name](0 * real, 0 * fake)
    assert float(nothing) == pytest.approx({"hinge": 1, "vanilla": np.log(2)}[name], rel=1e-6)


def test_gradient_penalty_of_a_quadratic():
    """D(x) = sum_i a_i x_i^2 / 2 everywhere: |a x|^2 / 2, meaned over images."""
    x, a = RNG.randn(3, 4, 4, 2).astype(np.float32), RNG.randn(4, 4, 2).astype(np.float32)

    def discriminator(x):
        value = jnp.sum(a[None] * x**2, axis=(1, 2, 3)) / 2
        return jnp.broadcast_to(value[:, None, None, None], (len(x), 2, 2, 1))

    expected = 0.5 * np.mean(np.sum((a * x) ** 2, axis=(1, 2, 3)))
    assert float(first_stage.gradient_penalty(discriminator, jnp.asarray(x))) == pytest.approx(expected, rel=1e-5)


def test_adaptive_weight():
    """The ratio of norms; 1e4 at most; scaled as the loss is; no gradient passes."""
    a, b = (jnp.asarray(RNG.randn(3, 3, 4, 2), jnp.float32) for _ in range(2))
    weight = first_stage.adaptive_weight(a, b)
    assert float(weight) == pytest.approx(np.linalg.norm(a) / (np.linalg.norm(b) + 1e-4), rel=1e-5)
    assert float(first_stage.adaptive_weight(3 * a, b)) == pytest.approx(3 * float(weight), rel=1e-5)
    assert float(first_stage.adaptive_weight(a, 0 * b)) == 1e4
    assert float(first_stage.adaptive_weight(0 * a, 0 * b)) == 0
    assert not np.any(jax.grad(lambda a: first_stage.adaptive_weight(a, b))(a))


@pytest.mark.parametrize("pixel", ["l1", "l2"])
def test_reconstruction(pixel):
    x, y = (jnp.asarray(RNG.randn(2, 4, 3, 2), jnp.float32) for _ in range(2))
    distances = jnp.asarray([0.5, 2.0])
    d = np.abs(np.asarray(x - y)) ** (1 if pixel == "l1" else 2)
    found = first_stage.reconstruction(x, y, distances, pixel=pixel, perceptual_weight=0.3, log_variance=0.4)
    assert float(found.pixel) == pytest.approx(d.mean(), rel=1e-5) and float(found.perceptual) == 1.25
    assert float(found.nll) == pytest.approx((d.mean() + 0.3 * 1.25) / np.exp(0.4) + 0.4, rel=1e-5)
    summed = first_stage.reconstruction(
        x, y, distances, pixel=pixel, perceptual_weight=0.3, log_variance=0.4, summed=True
    )
    # latent-diffusion: the distance is added to each number of its image, all are summed, and divided by the batch.
    theirs = ((d + 0.3 * np.asarray(distances)[:, None, None, None]) / np.exp(0.4) + 0.4).sum() / 2
    assert float(summed.nll) == pytest.approx(theirs, rel=1e-5)
    assert float(first_stage.reconstruction(x, x, pixel=pixel).nll) == 0
