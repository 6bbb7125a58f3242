"""Quantizers: their grids and codebooks, straight-through gradients, averages; taming's recorded ones."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ddpm_jax.models import quantizers, vq
from tests.first_stage.golden import nhwc
from tests.helpers import golden, relative


@pytest.mark.parametrize("case", range(4))
def test_vector_quantizers_as_recorded(case, highest):
    arrays, meta = golden("first_stage/quantizers")
    settings, key = meta["cases"][case], f"q{case}"
    beta_on = "codebook" if settings.get("legacy", True) else "encoder"

    def loss(z, codebook):
        indices = vq.nearest(z, codebook)
        entries = codebook[indices]
        commitment = vq.quantization_loss(z, entries, commitment=settings["beta"], beta_on=beta_on)
        z_q = z + lax.stop_gradient(entries - z)
        return jnp.sum(z_q * nhwc(arrays["cotangent"])) + commitment, (indices, commitment, z_q)

    (grad_z, grad_codebook), (indices, commitment, z_q) = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(
        nhwc(arrays["z"]), jnp.asarray(arrays["codebook"])
    )
    np.testing.assert_array_equal(indices.ravel(), arrays[f"{key}.indices"].ravel())
    for found, name in ((commitment, "loss"), (z_q, "z_q"), (grad_z, "grad_z"), (grad_codebook, "grad_codebook")):
        assert relative(found, nhwc(arrays[f"{key}.{name}"])) < 1e-5, name
    if case == 0:
        shares = quantizers.usage(indices, len(arrays["codebook"]))
        assert float(quantizers.perplexity(shares)) == pytest.approx(float(arrays["q0.perplexity"]), rel=1e-5)


def test_averages_as_recorded(highest):
    """Three steps: z_q is from the codebook before the step, and no gradient reaches the codebook."""
    arrays, meta = golden("first_stage/quantizer_ema")
    codebook = jnp.asarray(arrays["codebook"])
    averages = quantizers.CodebookAverages(jnp.zeros(len(codebook)), codebook)
    for k in range(3):
        z, cotangent = nhwc(arrays["z"][k]), nhwc(arrays[f"s{k}.cotangent"])

        def loss(z, codebook=codebook, cotangent=cotangent):
            indices = vq.nearest(z, codebook)
            entries = codebook[indices]
            commitment = meta["beta"] * jnp.mean((lax.stop_gradient(entries) - z) ** 2)
            return jnp.sum((z + lax.stop_gradient(entries - z)) * cotangent) + commitment, (indices, commitment)

        grad, (indices, commitment) = jax.grad(loss, has_aux=True)(z)
        before = codebook
        averages = quantizers.update_averages(averages, z, indices, decay=meta["decay"])
        codebook = quantizers.codebook_of(averages, eps=meta["eps"])
        np.testing.assert_array_equal(indices.ravel(), arrays[f"s{k}.indices"])
        assert relative(commitment, arrays[f"s{k}.loss"]) < 1e-5
        assert relative(grad, nhwc(arrays[f"s{k}.grad_z"])) < 1e-5
        assert relative(before[indices], nhwc(arrays[f"s{k}.z_q"])) < 1e-5
        shares = quantizers.usage(indices, len(codebook))
        assert float(quantizers.perplexity(shares)) == pytest.approx(float(arrays[f"s{k}.perplexity"]), rel=1e-5)
    # The tables of all three steps hold those after the last: they were views.
    for found, name in ((codebook, "weight"), (averages.counts, "cluster_size"), (averages.sums, "embed_avg")):
        assert relative(found, arrays[f"s2.{name}"]) < 1e-5, name


def test_averages_find_the_mean_of_each_code():
    """Of data that stay, the codebook goes to the means; of codes without data, nowhere."""
    z = jnp.asarray(np.random.RandomState(1).randn(40, 2), jnp.float32)
    codebook = jnp.asarray([[-1.0, 0.0], [1.0, 0.0], [50.0, 50.0]])
    indices = vq.nearest(z, codebook)
    averages = quantizers.codebook_averages(codebook)
    np.testing.assert_allclose(quantizers.codebook_of(averages, eps=0.0), codebook)
    for _ in range(60):
        averages = quantizers.update_averages(averages, z, indices, decay=0.8)
    found = quantizers.codebook_of(averages, eps=0.0)
    for k in (0, 1):
        np.testing.assert_allclose(found[k], z[indices == k].mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found[2], codebook[2], rtol=1e-5)


def test_perplexity_counts_codes_used_alike():
    assert float(quantizers.perplexity(quantizers.usage(jnp.arange(20) % 5, 9))) == pytest.approx(5, rel=1e-5)
    assert float(quantizers.perplexity(quantizers.usage(jnp.zeros(20, jnp.int32), 9))) == pytest.approx(1, rel=1e-5)
    recorded, _ = golden("first_stage/gan_losses")
    shares = quantizers.usage(jnp.asarray(recorded["indices"]), 16)
    assert float(quantizers.perplexity(shares)) == pytest.approx(float(recorded["perplexity"]), rel=1e-5)
    assert int((shares > 0).sum()) == recorded["cluster_use"]


@pytest.mark.parametrize("levels", [(2,), (3,), (8, 5), (4, 3, 5)])
def test_levels_are_a_grid(levels):
    """Its values are their own quantization when there is no rounding to do, codes count them, gradients pass."""
    every = jnp.arange(math.prod(levels), dtype=jnp.int32)
    entries = quantizers.level_entries(every, levels)
    assert len({tuple(row) for row in np.asarray(entries).round(6).tolist()}) == len(every)
    assert float(entries.min()) == -1 and float(entries.max()) <= 1 and (np.abs(entries) < 1e-6).all(axis=1).any()
    z = jnp.asarray(1.5 * np.random.RandomState(0).randn(3, 400, len(levels)), jnp.float32)
    found = quantizers.levels_quantized(z, levels)
    np.testing.assert_allclose(found.z, quantizers.level_entries(found.indices, levels), atol=1e-6)
    assert set(np.unique(found.indices)) == set(range(len(every)))
    zero = quantizers.levels_quantized(jnp.zeros((1, len(levels))), levels)
    np.testing.assert_array_equal(zero.z, 0)
    small = jnp.asarray(0.3 * np.random.RandomState(2).randn(7, len(levels)), jnp.float32)
    grad = jax.grad(lambda z: jnp.sum(quantizers.levels_quantized(z, levels).z))(small)
    numbers = np.asarray(levels)
    half = (numbers - 1) * 1.001 / 2
    shift = np.arctanh(np.where(numbers % 2, 0, 0.5) / half)
    expected = half / np.cosh(np.asarray(small, np.float64) + shift) ** 2 / (numbers // 2)
    np.testing.assert_allclose(grad, expected, rtol=2e-4)  # d tanh is 1 - tanh^2, which cancels where two levels are


def test_levels_of_a_model_are_those_of_its_latents():
    options = {"channels": 4, "channel_multipliers": (1, 1), "num_res_blocks": 1, "num_groups": 2}
    x = jnp.zeros((1, 4, 4, 3))
    with pytest.raises(ValueError, match=r"levels must be 3 numbers from 2 on.* got \(4, 3\)"):
        quantizers.FSQModel(**options, latent_channels=3, z_channels=3, levels=(4, 3)).init(jax.random.key(0), x)
    model = quantizers.FSQModel(**options, latent_channels=2, z_channels=2, levels=(4, 3))
    assert model.num_codes == 12
