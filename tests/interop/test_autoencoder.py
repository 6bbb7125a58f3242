"""AutoencoderKL and VQModel with the weights of diffusers and of latent-diffusion."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.interop import autoencoder, layers
from ddpm_jax.models.autoencoder import AutoencoderKL
from ddpm_jax.models.vq import VQModel, quantization_loss
from tests.helpers import relative
from tests.interop.golden_networks import (
    check,
    check_every_misfit_is_listed,
    check_there_and_back,
    load,
    network_of,
    nhwc,
    stored,
)

KL = (autoencoder.kl_from_config, autoencoder.kl_to_params, autoencoder.params_to_kl)
VQ = (autoencoder.vq_from_config, autoencoder.vq_to_params, autoencoder.params_to_vq)
LDM = (autoencoder.ldm_from_config, autoencoder.ldm_to_params, autoencoder.params_to_ldm)
DIFFUSERS = {"autoencoder_kl": KL, "vqmodel": VQ}
# A key bias adds the same to all logits of a query. In latent-diffusion's stored networks every group of the norms is
# one channel, so a norm removes what is constant over a channel's image: the bias before it. Biases beside it, on the
# residual path, survive until the last norm, unless a convolution that changes the size comes first.
LDM_NO_GRADIENT = {
    "encoder": r"\.k\.bias|conv1\.bias|downsample\.conv\.bias|(down\.1|mid)\..*(conv2|v|proj_out)\.bias",
    "decoder": r"\.k\.bias|conv1\.bias|upsample\.conv\.bias|up\.0\..*conv2\.bias",
}


@pytest.fixture(params=DIFFUSERS, scope="module")
def network(request, shared_golden):
    return stored(shared_golden, request.param, DIFFUSERS[request.param])


@pytest.fixture(scope="module")
def ldm(shared_golden):
    """The halves of latent-diffusion's network, which were stored one by one, with the weights of both."""
    encoder, decoder = (load(shared_golden, f"ldm_kl_{half}") for half in ("encoder", "decoder"))
    weights = encoder[2] | decoder[2]
    return [network_of(LDM, encoder[1]["config"], weights, *half[:2]) for half in (encoder, decoder)]


def test_output_and_gradients_of_diffusers_kl(shared_golden, highest):
    """decode(sample) for stored noise."""
    network = stored(shared_golden, "autoencoder_kl", KL)
    check(
        lambda params, x: network.model.apply({"params": params}, x, nhwc(network.arrays["in.noise"])),
        network,
        output="decoded",
        no_gradient=r"to_k\.bias",
    )


def test_posterior_of_diffusers_kl(shared_golden, highest):
    network = stored(shared_golden, "autoencoder_kl", KL)
    arrays, model, variables = network.arrays, network.model, {"params": network.params}
    posterior = jax.jit(partial(model.apply, method="encode"))(variables, nhwc(arrays["in.x"]))
    z = posterior.sample(nhwc(arrays["in.noise"]))
    assert relative(posterior.mode(), nhwc(arrays["out.mean"])) < 1e-5
    assert relative(posterior.log_variance, nhwc(arrays["out.logvar"])) < 1e-5
    assert relative(z, nhwc(arrays["out.z"])) < 1e-5
    np.testing.assert_allclose(posterior.kl(), arrays["out.kl"], rtol=1e-5)
    np.testing.assert_allclose(posterior.nll(z), arrays["out.nll"], rtol=1e-5)


def test_output_and_gradients_of_diffusers_vq(shared_golden, highest):
    network = stored(shared_golden, "vqmodel", VQ)
    check(
        lambda params, x: network.model.apply({"params": params}, x),
        network,
        output="decoded",
        no_gradient=r"to_k\.bias",
    )


def test_codes_of_diffusers_vq(shared_golden, highest):
    network = stored(shared_golden, "vqmodel", VQ)
    arrays, model, variables = network.arrays, network.model, {"params": network.params}
    z = model.apply(variables, nhwc(arrays["in.x"]), method="encode")
    quantized = model.apply(variables, z, method="quantize")
    assert relative(z, nhwc(arrays["out.latents"])) < 1e-5
    np.testing.assert_array_equal(quantized.indices.ravel(), arrays["out.indices"])
    entries = model.apply(variables, quantized.indices, method="entries")
    # The stored ones passed through z + (entries - z), and so have its rounding.
    assert relative(entries, nhwc(arrays["out.quantized"])) < 1e-6
    assert relative(quantized.z, nhwc(arrays["out.quantized"])) < 1e-6
    np.testing.assert_allclose(quantization_loss(z, entries), arrays["out.commit_loss"], rtol=1e-5)


def test_output_and_gradients_of_ldm_encoder(ldm, highest):
    encoder, _ = ldm

    def moments(params, x):
        posterior = encoder.model.apply({"params": params}, x, method="encode")
        return jnp.concatenate(posterior, axis=-1)

    assert np.abs(encoder.arrays["out.moments"]).max() < 20, "or the clipped log variance would differ"
    check(moments, encoder, output="moments", no_gradient=LDM_NO_GRADIENT["encoder"])


def test_output_and_gradients_of_ldm_decoder(ldm, highest):
    _, decoder = ldm
    check(
        lambda params, z: decoder.model.apply({"params": params}, z, method="decode"),
        decoder,
        output="decoded",
        no_gradient=LDM_NO_GRADIENT["decoder"],
    )


@pytest.mark.slow
def test_bfloat16_is_close_to_float32(shared_golden):
    arrays, meta, weights = load(shared_golden, "autoencoder_kl")
    model = replace(autoencoder.kl_from_config(meta["config"]), dtype=jnp.bfloat16)
    variables = {"params": autoencoder.kl_to_params(weights, meta["config"])}
    output = jax.jit(model.apply)(variables, nhwc(arrays["in.x"]), nhwc(arrays["in.noise"]))
    assert output.dtype == jnp.float32
    assert 1e-4 < relative(output, nhwc(arrays["out.decoded"])) < 2e-2


def test_there_and_back(network):
    check_there_and_back(network)


def test_there_and_back_for_ldm(ldm):
    check_there_and_back(ldm[0])


def test_every_misfit_is_listed(network):
    check_every_misfit_is_listed(
        network,
        removed="decoder.up_blocks.0.upsamplers.0.conv.bias",
        cut="encoder.mid_block.attentions.0.to_q.weight",
        layer="post_quant_conv",
    )


def test_every_misfit_is_listed_for_ldm(ldm):
    check_every_misfit_is_listed(
        ldm[0],
        removed="decoder.up.1.upsample.conv.bias",
        cut="encoder.mid.attn_1.q.weight",
        layer="post_quant_conv",
    )


def test_attention_names_of_older_diffusers(shared_golden):
    _, meta, weights = load(shared_golden, "autoencoder_kl")
    old = dict(weights)
    for new_name, old_name in {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value."}.items():
        old = {name.replace(new_name, old_name): array for name, array in old.items()}
    old = {name.replace(".to_out.0.", ".proj_attn."): array for name, array in old.items()}
    assert old.keys() != weights.keys()
    left, right = (autoencoder.kl_to_params(each, meta["config"]) for each in (old, weights))
    jax.tree.map(np.testing.assert_array_equal, left, right)


STABLE_DIFFUSION = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
KL_F8 = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
KL_F8 |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0, "embed_dim": 4}


def test_published_configurations():
    assert autoencoder.kl_from_config(STABLE_DIFFUSION) == AutoencoderKL()
    assert autoencoder.ldm_from_config(KL_F8) == AutoencoderKL()
    vq_f4 = KL_F8 | {"double_z": False, "z_channels": 3, "embed_dim": 3, "ch_mult": [1, 2, 4], "n_embed": 8192}
    expected = VQModel(channel_multipliers=(1, 2, 4), z_channels=3, latent_channels=3, num_codes=8192)
    assert autoencoder.ldm_from_config(vq_f4) == expected
    kl_f16 = KL_F8 | {"attn_resolutions": [16], "ch_mult": [1, 1, 2, 2, 4], "z_channels": 16, "embed_dim": 16}
    assert autoencoder.ldm_from_config(kl_f16).attention_levels == (4,)


def test_attention_of_diffusers_in_the_levels():
    """Names in diffusers 0.42.1 of AutoencoderKL with attention at the coarser of two levels."""
    config = {"block_out_channels": [32, 64], "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]}
    config |= {"up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]}
    names, wanted = autoencoder._names_and_shapes(autoencoder.kl_from_config(config), config, autoencoder.DIFFUSERS)
    found = {layers.their_name(path, names) for path in wanted if path.endswith("query/kernel") and "mid" not in path}
    assert found == {
        "encoder.down_blocks.1.attentions.0.to_q.weight",
        "decoder.up_blocks.0.attentions.0.to_q.weight",
        "decoder.up_blocks.0.attentions.1.to_q.weight",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "relu", "use_quant_conv": False}, "known here: act_fn='relu', use_quant_conv=False"),
        ({"block_out_channels": [128, 192, 512, 512]}, "block_out_channels="),
        ({"down_block_types": ["DownBlock2D"] * 4}, "down_block_types="),
        ({"up_block_types": ["AttnUpDecoderBlock2D"] * 4}, "up_block_types="),
    ],
)
def test_other_configurations_are_refused(change, message):
    for from_config in (autoencoder.kl_from_config, autoencoder.vq_from_config):
        with pytest.raises(ValueError, match=message):
            from_config(STABLE_DIFFUSION | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attn_type": "linear", "dropout": 0.1}, "known here: attn_type='linear', dropout=0.1"),
        ({"double_z": False}, "double_z=False without n_embed"),
        ({"n_embed": 256}, "double_z=True with n_embed"),
    ],
)
def test_other_configurations_of_ldm_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        autoencoder.ldm_from_config(KL_F8 | change)
