"""U-Nets and classifiers with OpenAI's weights: output, gradients, and the way of the weights there and back."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.interop import layers, openai
from ddpm_jax.interop.openai.published import CONFIGS
from tests.helpers import few, relative_rms
from tests.interop.golden_networks import check, check_every_misfit_is_listed, check_there_and_back, load, nhwc, stored

UNET = (openai.unet_from_config, openai.unet_to_params, openai.params_to_unet)
CLASSIFIER = (openai.classifier_from_config, openai.classifier_to_params, openai.params_to_classifier)
UNETS = ("guided_unet_adm", "guided_unet_legacy", "guided_superres", "improved_unet")
POOLS = ("adaptive", "attention", "spatial", "spatial_v2")
NETWORKS = dict.fromkeys(UNETS, UNET) | {f"guided_encoder_{pool}": CLASSIFIER for pool in POOLS}

# Parameters with a gradient of exactly zero. Groups of one channel (32 of 32) remove whatever is constant over a
# channel's image: biases just before such a norm, and the time where it is added there, not where it scales and shifts.
BEFORE_NORM = r"in_layers\.2\.bias"
BEFORE_LAST_NORM = r"output_blocks\.3\.(0\.(out_layers\.3|skip_connection)|1\.proj_out)\.bias"
NO_GRADIENT = {
    "guided_unet_adm": r"(input_blocks\.[12]|output_blocks\.[23])\.0\." + BEFORE_NORM + "|" + BEFORE_LAST_NORM,
    "guided_unet_legacy": BEFORE_NORM + "|emb|" + BEFORE_LAST_NORM,
    "guided_superres": BEFORE_NORM + "|" + BEFORE_LAST_NORM,
    "improved_unet": BEFORE_NORM + "|" + BEFORE_LAST_NORM,
    "guided_encoder_adaptive": BEFORE_NORM + r"|emb|(input_blocks\.[23]|middle).*(op|out_layers\.3|proj_out)\.bias",
    "guided_encoder_attention": BEFORE_NORM + r"|input_blocks\.0\.0\.bias|(out_layers\.3|proj_out)\.bias",
    "guided_encoder_spatial": BEFORE_NORM,
    "guided_encoder_spatial_v2": BEFORE_NORM + "|emb",
}


@pytest.fixture(params=few(NETWORKS, "guided_unet_adm", "improved_unet", "guided_encoder_attention"), scope="module")
def network(request, shared_golden):
    # A SuperResModel's first convolution sees twice the channels of its config.
    changes = {"in_channels": 6} if request.param == "guided_superres" else {}
    return stored(shared_golden, request.param, NETWORKS[request.param], **changes)


def conditioning(arrays):
    found = {"y": jnp.asarray(arrays["in.y"], jnp.int32)} if "in.y" in arrays else {}
    return found | ({"low_res": nhwc(arrays["in.low_res"])} if "in.low_res" in arrays else {})


def test_output_and_gradients(network, request, highest):
    arrays, model = network.arrays, network.model
    t, given = jnp.asarray(arrays["in.t"], jnp.float32), conditioning(arrays)
    inputs = ("x", "low_res") if "low_res" in given else ("x",)
    check(
        lambda params, *images: model.apply(
            {"params": params}, images[0], t, **given | dict(zip(inputs[1:], images[1:], strict=True))
        ),
        network,
        output="logits" if "out.logits" in arrays else "sample",
        inputs=inputs,
        no_gradient=NO_GRADIENT[request.node.callspec.params["network"]],
    )


def test_there_and_back(network):
    check_there_and_back(network)


@pytest.mark.slow
def test_bfloat16_is_close_to_float32(network):
    arrays, model = network.arrays, network.model
    t = jnp.asarray(arrays["in.t"], jnp.float32)
    low = jax.jit(replace(model, dtype=jnp.bfloat16).apply)
    output = low({"params": network.params}, nhwc(arrays["in.x"]), t, **conditioning(arrays))
    expected = nhwc(arrays["out.logits" if "out.logits" in arrays else "out.sample"])
    assert output.dtype == jnp.float32
    assert 1e-3 < relative_rms(output, expected) < 2e-2  # 0.2 to 1.6 % measured


def test_every_misfit_is_listed(network):
    check_every_misfit_is_listed(network, removed="time_embed.0.bias", cut="time_embed.2.weight", layer="time_1")


def test_a_qkv_of_the_wrong_size_is_named(shared_golden):
    _, meta, weights = load(shared_golden, "improved_unet")
    weights["middle_block.1.qkv.weight"] = weights["middle_block.1.qkv.weight"][:-1]
    with pytest.raises(ValueError, match=r"middle_block\.1\.qkv\[v\]\.weight is \[31, 32, 1\], expected \[32, 32, 1\]"):
        openai.unet_to_params(weights, meta["config"])


@pytest.mark.parametrize(
    ("name", "block", "ours", "num_heads"),
    [
        ("guided_unet_adm", "middle_block.1", "mid_attention", None),
        ("guided_unet_legacy", "middle_block.1", "mid_attention", 2),
        ("guided_unet_legacy", "output_blocks.0.1", "up_1_attention_0", 4),
        ("guided_superres", "middle_block.1", "mid_attention", 4),  # heads of 8 of 32 channels
    ],
)
def test_order_of_query_key_and_value(name, block, ours, num_heads, shared_golden):
    """Rows of qkv: all q, all k, all v in the new order (None here); otherwise q, k, v of one head after the other."""
    _, meta, weights = load(shared_golden, name)
    config = meta["config"] | ({"in_channels": 6} if name == "guided_superres" else {})
    params, rows = openai.unet_to_params(weights, config)[ours], weights[f"{block}.qkv.weight"][:, :, 0]
    width = len(rows) // 3
    for i, layer in enumerate(("query", "key", "value")):
        for j in range(width):
            size = width // (num_heads or 1)
            row = i * width + j if num_heads is None else (j // size * 3 + i) * size + j % size
            np.testing.assert_array_equal(params[layer]["kernel"][:, j], rows[row])


# Counted by guided-diffusion's own classes on PyTorch's meta device; the papers say 296 M and 553 M for the first and
# fourth, the file names of improved-diffusion 50 M, 100 M and 270 M.
SIZES = {
    "64x64_diffusion": 295_904_454,
    "128x128_diffusion": 421_529_606,
    "256x256_diffusion": 553_838_086,
    "256x256_diffusion_uncond": 552_814_086,
    "512x512_diffusion": 558_997_638,
    "64_256_upsampler": 311_795_910,
    "128_512_upsampler": 308_835_270,
    "64x64_classifier": 65_438_568,
    "128x128_classifier": 42_568_040,
    "256x256_classifier": 54_096_360,
    "512x512_classifier": 54_448_360,
    "lsun_bedroom": 552_814_086,
    "cifar10_uncond_50M_500K": 52_546_438,
    "imagenet64_uncond_100M_1500K": 121_063_942,
    "imagenet64_cond_270M_250K": 273_049_350,
    "upsample_cond_500K": 279_792_390,
    "lsun_uncond_100M_1200K_bs128": 113_676_678,
}


@pytest.mark.parametrize(
    "name", few(SIZES, "64x64_diffusion", "256x256_diffusion_uncond", "lsun_uncond_100M_1200K_bs128")
)
def test_sizes_of_published_networks(name):
    """By shapes alone, at the image size they were trained for."""
    config = CONFIGS[name]
    is_classifier = name.endswith("classifier")
    model = (openai.classifier_from_config if is_classifier else openai.unet_from_config)(config)
    image = (config["image_size"], config["image_size"], config["in_channels"])
    shapes = layers.shapes(model, image) if is_classifier else layers.unet_shapes(model, image)
    assert sum(math.prod(shape) for shape in shapes.values()) == SIZES[name]


BASE = {"in_channels": 3, "model_channels": 32, "out_channels": 3, "num_res_blocks": 1, "attention_resolutions": (2,)}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BASE | {"chanel_mult": (1, 2)}, "unknown setting 'chanel_mult'; did you mean 'channel_mult'"),
        (BASE | {"pool": "spatial"}, "unknown setting 'pool'"),
        (BASE | {"dims": 3}, "dims must be 2, got 3"),
        ({"in_channels": 3, "out_channels": 3, "num_res_blocks": 1}, "config misses model_channels, attention_resol"),
    ],
)
def test_settings_that_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        openai.unet_from_config(config)


def test_an_unknown_pool_is_refused():
    with pytest.raises(ValueError, match=r"unknown pool 'max'.*adaptive"):
        openai.classifier_from_config(BASE | {"pool": "max"})


def test_head_channels_win_over_heads():
    """As in guided-diffusion, where flags give num_heads=4 beside num_head_channels=64."""
    both = openai.unet_from_config(BASE | {"num_heads": 4, "num_heads_upsample": 2, "num_head_channels": 8})
    assert both == openai.unet_from_config(BASE | {"num_head_channels": 8})
    assert both.heads(32, both.num_heads) == 4
