"""The U-Net with diffusers' weights: output, gradients, and the way there and back."""

import json
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from ddpm_jax.interop import ddim, diffusers
from tests.helpers import relative

NETWORKS = {
    "unet2d_ddpm_pad0": (diffusers.unet_from_config, diffusers.unet2d_to_params, diffusers.params_to_unet2d),
    "ddim_model": (ddim.unet_from_config, ddim.ddim_to_params, ddim.params_to_ddim),
}

# Parameters with a gradient of exactly zero: both implementations return the rounding noise of a sum that cancels.
# A key bias b adds q . b to all logits of a query, which softmax ignores. And the stored ddim network has groups of
# one channel, so norms remove whatever is constant over a channel's image: the biases and times just before them.
NO_GRADIENT = {
    "unet2d_ddpm_pad0": r"to_k\.bias",
    "ddim_model": r"\.k\.bias|conv1\.bias|temb|up\.0\.block\.1\.(conv2|nin_shortcut)\.bias",
}


@pytest.fixture(params=NETWORKS, scope="module")
def network(request, shared_golden):
    """(arrays, meta, weights, the three functions) of one stored network."""
    path = shared_golden / "networks" / request.param
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files if key != "meta"}
        meta = json.loads(str(file["meta"]))
    return arrays, meta, load_file(path.with_suffix(".safetensors")), NETWORKS[request.param]


def nhwc(images):
    return jnp.asarray(images.transpose(0, 2, 3, 1))


def test_output_and_gradients(network, request, highest):
    """float32 against PyTorch's float32, relative to the largest entry of each array."""
    arrays, meta, weights, (unet_from_config, to_params, to_state_dict) = network
    model, params = unet_from_config(meta["config"]), to_params(weights, meta["config"])
    t, cotangent = jnp.asarray(arrays["in.t"], jnp.float32), nhwc(arrays["cotangent"])

    def loss(params, x_t):
        output = model.apply({"params": params}, x_t, t)
        return jnp.mean(output * cotangent), output

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, output), (grad_params, grad_x) = gradient(params, nhwc(arrays["in.x"]))
    assert relative(output, nhwc(arrays["out.sample"])) < 1e-4
    assert relative(grad_x, nhwc(arrays["grad.in.x"])) < 1e-4
    np.testing.assert_allclose(value, arrays["loss"], rtol=1e-4)

    grads = to_state_dict(grad_params, meta["config"])
    total = np.sqrt(sum(np.sum(grad.astype(np.float64) ** 2) for grad in grads.values()))
    np.testing.assert_allclose(total, arrays["grad_global_norm"], rtol=1e-4)
    no_gradient = re.compile(NO_GRADIENT[request.node.callspec.params["network"]])
    for name, expected in zip(meta["param_names"], arrays["grad_norms"], strict=True):
        actual = np.linalg.norm(grads[name].astype(np.float64))
        if no_gradient.search(name):
            assert max(actual, expected) < 1e-6 * total, name
            continue
        np.testing.assert_allclose(actual, expected, rtol=1e-4, err_msg=name)
        if f"grad.param.{name}" in arrays:
            assert relative(grads[name], arrays[f"grad.param.{name}"]) < 1e-4, name


def test_bfloat16_is_close_to_float32(network):
    arrays, meta, weights, (unet_from_config, to_params, _) = network
    model = replace(unet_from_config(meta["config"]), dtype=jnp.bfloat16)
    params, t = to_params(weights, meta["config"]), jnp.asarray(arrays["in.t"], jnp.float32)
    output = jax.jit(model.apply)({"params": params}, nhwc(arrays["in.x"]), t)
    assert relative(output, nhwc(arrays["out.sample"])) < 2e-2


def test_there_and_back(network):
    _, meta, weights, (_, to_params, to_state_dict) = network
    back = to_state_dict(to_params(weights, meta["config"]), meta["config"])
    assert back.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_every_misfit_is_listed(network):
    _, meta, weights, (_, to_params, to_state_dict) = network
    changed = dict(weights)
    del changed["conv_in.bias"]
    changed["conv_out.weight"] = changed["conv_out.weight"][:2]
    changed["another.weight"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="fit") as error:
        to_params(changed, meta["config"])
    for part in ("missing conv_in.bias", "left over another.weight", "conv_out.weight is [2, "):
        assert part in str(error.value)

    params = to_params(weights, meta["config"])
    del params["norm_out"]
    with pytest.raises(ValueError, match=r"missing norm_out/(bias|scale).*missing norm_out/"):
        to_state_dict(params, meta["config"])


def test_attention_names_of_older_diffusers(shared_golden):
    path = shared_golden / "networks" / "unet2d_ddpm_pad0"
    config = json.loads(str(np.load(path.with_suffix(".npz"))["meta"]))["config"]
    weights = load_file(path.with_suffix(".safetensors"))
    old = weights
    for new_name, old_name in {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value."}.items():
        old = {name.replace(new_name, old_name): array for name, array in old.items()}
    old = {name.replace(".to_out.0.", ".proj_attn."): array for name, array in old.items()}
    assert old.keys() != weights.keys()
    left, right = diffusers.unet2d_to_params(old, config), diffusers.unet2d_to_params(weights, config)
    jax.tree.map(np.testing.assert_array_equal, left, right)


CIFAR10 = {
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}


def test_config_of_the_cifar10_checkpoint_is_the_default_network():
    model = diffusers.unet_from_config(CIFAR10 | {"dropout": 0.1})
    assert model == type(model)()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"downsample_padding": 1}, "downsample_padding=1"),
        ({"norm_eps": 1e-5, "freq_shift": 0}, "freq_shift=0, norm_eps=1e-05"),
        ({"block_out_channels": [128, 192, 256, 256]}, "block_out_channels="),
        ({"down_block_types": ["ResnetDownsampleBlock2D"] * 4}, "down_block_types="),
        ({"up_block_types": ["UpBlock2D"] * 4}, "up_block_types="),
    ],
)
def test_other_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        diffusers.unet_from_config(CIFAR10 | change)


def test_ddim_without_resampling_convolutions_is_refused():
    with pytest.raises(ValueError, match="resamp_with_conv"):
        ddim.unet_from_config({"resamp_with_conv": False})
