"""AutoencoderKL and VQModel: size, posterior, quantization, errors. Their numbers: tests/interop."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ddpm_jax.models.autoencoder import AutoencoderKL, DiagonalGaussian
from ddpm_jax.models.vq import VQModel, nearest, quantization_loss
from tests.helpers import relative

SETTINGS = {"channels": 8, "channel_multipliers": (1, 2), "num_res_blocks": 1, "num_groups": 4}
KL = AutoencoderKL(**SETTINGS, latent_channels=2, z_channels=3)
VQ = VQModel(**SETTINGS, latent_channels=2, z_channels=3, num_codes=5)


def count(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def test_published_sizes():
    """diffusers 0.42.1 on PyTorch's meta device: Stable Diffusion's AutoencoderKL, and LDM's VQ-f4 with 8192 codes."""
    assert count(AutoencoderKL()) == 83_653_863
    f4 = {"channel_multipliers": (1, 2, 4), "latent_channels": 3, "z_channels": 3}
    assert count(VQModel(**f4, num_codes=8192)) == 55_322_782


def test_latents_are_smaller_by_the_factor():
    x = jax.ShapeDtypeStruct((1, 64, 32, 3), jnp.float32)
    variables = jax.eval_shape(AutoencoderKL().init, jax.random.key(0), x)
    posterior = jax.eval_shape(partial(AutoencoderKL().apply, method="encode"), variables, x)
    assert posterior.mean.shape == posterior.log_variance.shape == (1, 8, 4, 4)
    image = jax.eval_shape(partial(AutoencoderKL().apply, method="decode"), variables, posterior.mean)
    assert image.shape == (1, 64, 32, 3)


def test_attention_is_where_it_is_asked_for():
    def attentions(levels):
        model = replace(KL, attention_levels=levels)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
        return {f"{half}/{name}" for half in ("encoder", "decoder") for name in shapes[half] if "attention" in name}

    middle = {"encoder/mid_attention", "decoder/mid_attention"}
    assert attentions(()) == middle
    level_1 = {"encoder/down_1_attention_0", "decoder/up_1_attention_0", "decoder/up_1_attention_1"}
    assert attentions((1,)) == middle | level_1


def gaussian():
    rng = np.random.default_rng(0)
    mean, log_variance = rng.normal(size=(2, 3, 4, 4, 2)).astype(np.float32)
    return DiagonalGaussian(jnp.asarray(mean), jnp.asarray(log_variance))


def test_posterior_density():
    posterior = gaussian()
    eps = np.random.default_rng(1).normal(size=(3, 4, 4, 2)).astype(np.float32)
    z = posterior.sample(jnp.asarray(eps))
    deviation = np.exp(0.5 * np.asarray(posterior.log_variance, np.float64))
    expected = -stats.norm.logpdf(z, posterior.mean, deviation).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(posterior.nll(z), expected, rtol=1e-5)
    np.testing.assert_allclose((z - posterior.mode()) / deviation, eps, rtol=1e-3, atol=1e-5)


def test_posterior_divergence():
    """KL = E[log q(z) - log N(z; 0, I)] over samples: within five standard errors; and 0 for N(0, I) itself."""
    one = jax.tree.map(lambda leaf: leaf[:1], gaussian())
    many = jax.tree.map(lambda leaf: jnp.repeat(leaf, 20000, axis=0), one)
    z = many.sample(jnp.asarray(np.random.default_rng(1).normal(size=many.mean.shape), jnp.float32))
    ratio = np.asarray(0.5 * (z**2 + np.log(2 * np.pi)).sum(axis=(1, 2, 3)) - many.nll(z), np.float64)
    assert abs(ratio.mean() - one.kl()[0]) < 5 * ratio.std() / math.sqrt(len(ratio))
    zero = jnp.zeros((1, 2, 2, 1), jnp.float32)
    assert DiagonalGaussian(zero, zero).kl()[0] == 0


@pytest.fixture(scope="module")
def kl_params():
    return jax.jit(KL.init)(jax.random.key(0), images())["params"]


@pytest.fixture(scope="module")
def vq_params():
    params = jax.jit(VQ.init)(jax.random.key(0), images())["params"]
    # Codes further apart than they start, or all latents would fall to one.
    return params | {"codebook": {"embedding": jax.random.normal(jax.random.key(5), (5, 2), jnp.float32)}}


def images():
    return jax.random.normal(jax.random.key(1), (2, 8, 8, 3), jnp.float32)


@pytest.mark.slow
def test_kl_reconstruction_is_decode_of_mode_or_sample(kl_params):
    apply = partial(KL.apply, {"params": kl_params})
    posterior = apply(images(), method="encode")
    eps = jax.random.normal(jax.random.key(2), (2, 4, 4, 2), jnp.float32)
    assert relative(apply(images()), apply(posterior.mode(), method="decode")) < 1e-6
    assert relative(apply(images(), eps), apply(posterior.sample(eps), method="decode")) < 1e-6
    assert relative(apply(images(), eps), apply(images())) > 1e-2


def test_log_variance_is_clipped(kl_params):
    bias = jnp.array([0.0, 0.0, 1e3, -1e3], jnp.float32)
    params = kl_params | {"quant_conv": {"kernel": jnp.zeros((6, 4), jnp.float32), "bias": bias}}
    posterior = KL.apply({"params": params}, images(), method="encode")
    np.testing.assert_array_equal(posterior.log_variance[0, 0, 0], [20.0, -30.0])


def test_nearest_code():
    rng = np.random.default_rng(0)
    z, codebook = rng.normal(size=(3, 4, 5, 2)).astype(np.float32), rng.normal(size=(7, 2)).astype(np.float32)
    distances = ((z[..., None, :] - codebook) ** 2).sum(axis=-1)
    np.testing.assert_array_equal(nearest(jnp.asarray(z), jnp.asarray(codebook)), distances.argmin(axis=-1))


def test_quantized_latents(vq_params):
    """They are entries, quantizing again changes nothing, and the gradient passes as if nothing had happened."""
    apply = partial(VQ.apply, {"params": vq_params})
    z = 2 * jax.random.normal(jax.random.key(3), (2, 4, 4, 2), jnp.float32)
    quantized = apply(z, method="quantize")
    assert len(np.unique(quantized.indices)) > 2
    entries = apply(quantized.indices, method="entries")
    np.testing.assert_array_equal(entries, vq_params["codebook"]["embedding"][quantized.indices])
    np.testing.assert_allclose(quantized.z, entries, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(apply(entries, method="quantize").indices, quantized.indices)

    weight = jax.random.normal(jax.random.key(4), z.shape, jnp.float32)
    gradient = jax.grad(lambda z: jnp.sum(weight * apply(z, method="quantize").z))(z)
    np.testing.assert_array_equal(gradient, weight)


def test_vq_decodes_the_nearest_entries(vq_params):
    apply = partial(VQ.apply, {"params": vq_params})
    z = apply(images(), method="encode")
    entries = apply(apply(z, method="quantize").indices, method="entries")
    assert relative(apply(images()), apply(z, method="decode")) < 1e-6
    assert relative(apply(z, method="decode"), apply(entries, method="decode")) < 1e-5


def test_quantization_loss_moves_the_codebook_with_weight_one_and_the_encoder_with_the_commitment():
    z, z_q = jnp.array([[[[1.0, 2.0]]]], jnp.float32), jnp.array([[[[0.5, 4.0]]]], jnp.float32)
    loss = partial(quantization_loss, commitment=0.1)
    np.testing.assert_allclose(loss(z, z_q), 1.1 * (0.25 + 4) / 2, rtol=1e-6)
    towards_z, towards_codes = jax.grad(loss, argnums=(0, 1))(z, z_q)
    np.testing.assert_allclose(towards_codes, z_q - z, rtol=1e-6)
    np.testing.assert_allclose(towards_z, 0.1 * (z - z_q), rtol=1e-6)


@pytest.mark.parametrize("model", [KL, VQ], ids=["kl", "vq"])
@pytest.mark.parametrize(
    ("change", "x_shape", "message"),
    [
        ({}, (8, 8, 3), r"x must be \[B, H, W, C\], got shape \(8, 8, 3\)"),
        ({}, (1, 8, 9, 3), "H and W must be divisible by 2, got 8 x 9"),
        ({"attention_levels": (2,)}, (1, 8, 8, 3), r"attention_levels \(2,\) are not all among 0 .. 1"),
    ],
)
def test_errors_while_tracing(model, change, x_shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(replace(model, **change).init, jax.random.key(0), jnp.zeros(x_shape))


def test_latents_of_the_wrong_shape(kl_params):
    with pytest.raises(ValueError, match=r"z must be \[B, h, w, 2\], got shape \(1, 4, 4, 3\)"):
        KL.apply({"params": kl_params}, jnp.zeros((1, 4, 4, 3)), method="decode")
