"""GLIDE's networks with OpenAI's weights: outputs, gradients, and the way of the weights there and back."""

import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.interop import glide
from ddpm_jax.models import Glide
from tests.helpers import few, relative, relative_rms
from tests.interop.golden_networks import check, check_every_misfit_is_listed, check_there_and_back, nhwc, stored

FAMILY = (glide.glide_from_config, glide.glide_to_params, glide.params_to_glide)
# The channels of their first convolution; the stored config has those of the image.
NETWORKS = {"glide_text2im": 3, "glide_superres": 6}
# Groups of one channel (32 of 32) remove what is constant over a channel's image: biases just before such a norm.
NO_GRADIENT = r"in_layers\.2\.bias|output_blocks\.3\.0\.(out_layers\.3|skip_connection)\.bias"


@pytest.fixture(params=few(NETWORKS, "glide_superres"), scope="module")
def network(request, shared_golden):
    return stored(shared_golden, request.param, FAMILY, in_channels=NETWORKS[request.param])


def conditioning(arrays):
    text = {"tokens": jnp.asarray(arrays["in.tokens"], jnp.int32), "mask": jnp.asarray(arrays["in.mask"])}
    return text | ({"low_res": nhwc(arrays["in.low_res"])} if "in.low_res" in arrays else {})


def test_output_and_gradients(network, highest):
    t, given = jnp.asarray(network.arrays["in.t"], jnp.float32), conditioning(network.arrays)
    check(
        lambda params, x_t: network.model.apply({"params": params}, x_t, t, **given),
        network,
        output="sample",
        no_gradient=NO_GRADIENT,
    )


@pytest.fixture(scope="module")
def superres(shared_golden):
    return stored(shared_golden, "glide_superres", FAMILY, in_channels=6)


def test_text_once(superres, highest):
    """The features of the text are theirs, and the U-Net alone makes of them what the whole network does."""
    arrays, params, given = superres.arrays, superres.params, conditioning(superres.arrays)
    y, context = superres.model.text.apply({"params": params["text"]}, given.pop("tokens"), given.pop("mask"))
    assert relative(y, arrays["out.xf_proj"]) < 1e-5
    assert relative(context, arrays["out.xf_out"].transpose(0, 2, 1)) < 1e-5
    x_t, t = nhwc(arrays["in.x"]), jnp.asarray(arrays["in.t"], jnp.float32)
    sample = jax.jit(superres.model.unet.apply)({"params": params["unet"]}, x_t, t, y=y, context=context, **given)
    assert relative(sample, nhwc(arrays["out.sample"])) < 1e-5


@pytest.mark.parametrize("said", [{"xf_final_ln": False}, {"xf_final_ln": None}])
def test_a_text_without_its_last_norm(said, superres, shared_golden, highest):
    """Normed by hand it is the recorded one; what is projected is not normed. Weights: there and back."""
    network = stored(shared_golden, "glide_superres", FAMILY, in_channels=6, **said)
    norm = {name: network.weights[f"final_ln.{name}"] for name in ("weight", "bias")}
    left = {name: array for name, array in network.weights.items() if not name.startswith("final_ln.")}
    network = network._replace(weights=left)
    check_there_and_back(network)
    given = conditioning(superres.arrays)
    y, context = network.model.text.apply({"params": network.params["text"]}, given["tokens"], given["mask"])
    h = np.asarray(context, np.float64)
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    normed = h * norm["weight"] + norm["bias"]
    assert relative(normed, superres.arrays["out.xf_out"].transpose(0, 2, 1)) < 1e-5
    projected = np.asarray(context)[:, -1] @ left["transformer_proj.weight"].T + left["transformer_proj.bias"]
    assert relative(y, projected) < 1e-5
    with pytest.raises(ValueError, match=r"left over final_ln\.weight"):
        network.to_params(superres.weights)


@pytest.mark.slow
def test_bfloat16_is_close_to_float32(superres):
    low = (replace(part, dtype=jnp.bfloat16) for part in (superres.model.text, superres.model.unet))
    t = jnp.asarray(superres.arrays["in.t"], jnp.float32)
    apply = jax.jit(Glide(*low).apply)
    output = apply({"params": superres.params}, nhwc(superres.arrays["in.x"]), t, **conditioning(superres.arrays))
    assert output.dtype == jnp.float32
    # One rounding is 2^-8 = 0.004. The compilers of jaxlib 0.10.2 and 0.10.0 round differently: 0.0191 and 0.0209.
    assert 1e-3 < relative_rms(output, nhwc(superres.arrays["out.sample"])) < 2.5e-2


def test_there_and_back(network):
    check_there_and_back(network)


@pytest.mark.parametrize(
    ("removed", "cut", "layer"),
    [
        ("middle_block.1.proj_out.bias", "out.2.weight", "unet"),
        ("transformer.resblocks.1.attn.c_proj.bias", "padding_embedding", "text"),
    ],
)
def test_every_misfit_is_listed(superres, removed, cut, layer):
    check_every_misfit_is_listed(superres, removed=removed, cut=cut, layer=layer)


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        ("middle_block.1.encoder_kv", ("[31, 32, 1]", "[32, 32, 1]")),
        ("transformer.resblocks.0.attn.c_qkv", ("[31, 32]", "[32, 32]")),
    ],
)
def test_a_fused_layer_of_the_wrong_size_is_named(superres, layer, shapes):
    changed = superres.weights | {f"{layer}.weight": superres.weights[f"{layer}.weight"][:-1]}
    with pytest.raises(ValueError, match=re.escape("{}[v].weight is {}, expected {}".format(layer, *shapes))):
        superres.to_params(changed)


@pytest.mark.parametrize(
    ("fused", "ours", "heads"),
    [
        ("input_blocks.3.1.qkv", ("unet/down_1_attention_0/image_" + name for name in ("query", "key", "value")), 2),
        ("output_blocks.1.1.encoder_kv", ("unet/up_1_attention_1/context_" + name for name in ("key", "value")), 2),
        (
            "transformer.resblocks.1.attn.c_qkv",
            ("text/block_1/attention/" + name for name in ("query", "key", "value")),
            4,
        ),
    ],
)
def test_order_of_query_key_and_value(shared_golden, fused, ours, heads):
    """Rows of a fused layer: the query of one head, its key, its value, then the next head."""
    network = stored(shared_golden, "glide_text2im", FAMILY)
    rows, ours = network.weights[f"{fused}.weight"].reshape(-1, 32), list(ours)
    size = len(rows) // len(ours) // heads
    for part, path in enumerate(ours):
        layer = network.params
        for key in path.split("/"):
            layer = layer[key]
        for j in range(heads * size):
            row = (j // size * len(ours) + part) * size + j % size
            np.testing.assert_array_equal(layer["kernel"][:, j], rows[row])


def test_inputs_of_the_upsampler_that_paints(shared_golden):
    """Channels there: x_t, known pixels, their mask, low_res. Here low_res comes second."""
    network = stored(shared_golden, "glide_superres", FAMILY, in_channels=10)
    name = "input_blocks.0.0.weight"
    rng = np.random.default_rng(0)
    weights = network.weights | {name: rng.normal(size=(32, 10, 3, 3)).astype(np.float32)}
    check_there_and_back(network._replace(weights=weights))

    images = {key: rng.normal(size=(1, 3, 4, 4)).astype(np.float32) for key in ("x_t", "known", "low_res")}
    mask = rng.integers(2, size=(1, 1, 4, 4)).astype(np.float32)
    theirs = np.concatenate([images["x_t"], images["known"], mask, images["low_res"]], axis=1)
    concat = nhwc(np.concatenate([images["known"], mask], axis=1))
    x = network.model.unet.apply({}, nhwc(images["x_t"]), nhwc(images["low_res"]), concat, method="condition")
    kernel = network.to_params(weights)["unet"]["conv_in"]["kernel"]
    np.testing.assert_allclose(x @ kernel[1, 1], nhwc(theirs) @ weights[name][:, :, 1, 1].T, rtol=1e-4, atol=1e-5)


# Printed by programs that load OpenAI's classes: base and upsample. The others have 4 more channels of input.
SIZES = {"base": 385_030_726, "upsample": 398_361_286}
SIZES |= {f"{name}-inpaint": size + 4 * 9 * 192 for name, size in SIZES.items()}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_of_published_networks(name):
    config = glide.PUBLISHED[name]
    _, wanted, *_ = glide._layout(glide.glide_from_config(config), config)
    assert sum(math.prod(shape) for shape in wanted.values()) == SIZES[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"xf_padding": False, "xf_ar": 0.5}, "known here: xf_ar=0.5, xf_padding=False"),
        ({"num_classes": 10}, "known here: num_classes=10"),
        ({"num_chanels": 192}, "unknown setting 'num_chanels'; did you mean"),
    ],
)
def test_other_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        glide.glide_from_config(glide.PUBLISHED["base"] | change)


def test_a_missing_setting_is_named():
    config = {name: value for name, value in glide.PUBLISHED["base"].items() if name not in ("n_vocab", "text_ctx")}
    with pytest.raises(ValueError, match="config misses n_vocab, text_ctx"):
        glide.glide_from_config(config)
