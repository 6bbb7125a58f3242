"""The U-Net with the weights of diffusers and of ermongroup/ddim: output, gradients, and the way there and back."""

import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from ddpm_jax import interop
from ddpm_jax.interop import ddim, diffusers, layers
from ddpm_jax.interop.diffusers import to_diffusers
from ddpm_jax.models import SkipUNet
from tests.helpers import few, relative_rms
from tests.interop.golden_networks import check, check_every_misfit_is_listed, check_there_and_back, load, nhwc, stored

UNET2D = (diffusers.unet_from_config, diffusers.unet2d_to_params, diffusers.params_to_unet2d)
NETWORKS = {
    "unet2d_ddpm_pad0": UNET2D,
    "unet2d_pad1_class_scaleshift": UNET2D,
    "unet2d_resnet_updown": UNET2D,
    "ddim_model": (ddim.unet_from_config, ddim.ddim_to_params, ddim.params_to_ddim),
}

# Parameters with a gradient of exactly zero. A key bias b adds q . b to all logits of a query, which softmax ignores.
# And the stored ddim network has groups of one channel, so norms remove whatever is constant over a channel's image:
# the biases and times just before them.
NO_GRADIENT = {
    "ddim_model": r"\.k\.bias|conv1\.bias|temb|up\.0\.block\.1\.(conv2|nin_shortcut)\.bias",
}


@pytest.fixture(params=few(NETWORKS, "unet2d_ddpm_pad0", "ddim_model"), scope="module")
def network(request, shared_golden):
    return stored(shared_golden, request.param, NETWORKS[request.param])


def conditioning(arrays, model):
    if "in.y" not in arrays:
        return {}
    return {"y": jnp.asarray(arrays["in.y"], jnp.int32 if model.num_classes else jnp.float32)}


def test_output_and_gradients(network, request, highest):
    """float32 against PyTorch's float32, relative to the largest entry of each array."""
    arrays, model = network.arrays, network.model
    t, given = jnp.asarray(arrays["in.t"], jnp.float32), conditioning(arrays, model)
    check(
        lambda params, x_t: model.apply({"params": params}, x_t, t, **given),
        network,
        output="sample",
        no_gradient=NO_GRADIENT.get(request.node.callspec.params["network"], r"to_k\.bias"),
    )


@pytest.mark.slow
def test_bfloat16_is_close_to_float32(network):
    arrays, model = network.arrays, network.model
    t = jnp.asarray(arrays["in.t"], jnp.float32)
    low = jax.jit(replace(model, dtype=jnp.bfloat16).apply)
    output = low({"params": network.params}, nhwc(arrays["in.x"]), t, **conditioning(arrays, model))
    # The typical error, 1.2 to 1.9 % measured: 2^-9 for each rounding, some ten layers in a row. The largest of the
    # hundreds of errors is that of an outlier, up to 2.2 % of the largest output.
    assert 1e-3 < relative_rms(output, nhwc(arrays["out.sample"])) < 2e-2


def test_there_and_back(network):
    check_there_and_back(network)


def test_every_misfit_is_listed(network):
    check_every_misfit_is_listed(network, removed="conv_in.bias", cut="conv_out.weight", layer="norm_out")


def test_attention_names_of_older_diffusers(shared_golden):
    _, meta, weights = load(shared_golden, "unet2d_ddpm_pad0")
    old = weights
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    for new_name, old_name in names.items():
        old = {name.replace(new_name, old_name): array for name, array in old.items()}
    assert old.keys() != weights.keys()
    left, right = (diffusers.unet2d_to_params(weights, meta["config"]) for weights in (old, weights))
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
    assert model.attention_factors == (2,)  # of any image; the default says 16 of 32
    assert replace(model, attention_resolutions=(16,), attention_factors=None) == type(model)()


def test_defaults_of_diffusers():
    """UNet2DModel() is a network of 274,056,163 parameters (counted by diffusers 0.42.1 itself)."""
    shapes = layers.unet_shapes(diffusers.unet_from_config({}), (8, 8, 3))
    assert sum(math.prod(shape) for shape in shapes.values()) == 274_056_163


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "tanh", "add_attention": None}, "add_attention=None, act_fn='tanh'"),
        ({"mid_block_scale_factor": 0, "mid_block_type": None}, "mid_block_type=None, mid_block_scale_factor=0"),
        ({"time_embedding_type": "learned", "time_embedding_dim": 8}, "time_embedding_(type='learned'|dim=8), time"),
        ({"freq_shift": 2, "downsample_padding": 3}, "downsample_padding=3, freq_shift=2|freq_shift=2, down.*=3"),
        ({"attn_norm_num_groups": 24}, "attn_norm_num_groups=24"),
        ({"down_block_types": ["SkipDownBlock2D"] * 4}, "down_block_types="),
        (
            {"down_block_types": ["SkipDownBlock2D"] * 4, "up_block_types": ["SkipUpBlock2D"] * 4, "in_channels": 1},
            "in_channels=1",
        ),
        ({"norm_num_groups": None}, "norm_num_groups=None"),
        ({"down_block_types": ["DownBlock2D"] * 3}, "down_block_types="),
        ({"up_block_types": ["UpBlock2D"] * 3}, "up_block_types="),
        ({"up_block_types": ["UpBlock2D"] * 3 + ["KUpBlock2D"]}, "up_block_types="),
        ({"a_setting_of_the_future": 1}, "a_setting_of_the_future=1"),
    ],
)
def test_other_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match="not a UNet2DModel that is known here: .*(" + message + ")"):
        diffusers.unet_from_config(CIFAR10 | change)


SKIPS = ["SkipDownBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"]


@pytest.mark.parametrize(
    "change",
    [
        {"act_fn": "mish", "add_attention": False, "mid_block_scale_factor": 2**0.5},
        {"act_fn": "gelu", "attn_norm_num_groups": 8, "up_block_types": ["UpBlock2D"] * 4},
        {"act_fn": "relu", "up_block_types": ["AttnUpBlock2D"] * 4, "upsample_type": "resnet"},
        {"down_block_types": SKIPS, "up_block_types": [name.replace("Down", "Up") for name in SKIPS]},
        {"time_embedding_type": "fourier", "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    ],
)
def test_every_setting_is_written_as_it_was_read(change):
    model = diffusers.unet_from_config(CIFAR10 | change)
    assert model != diffusers.unet_from_config(CIFAR10)
    written = to_diffusers.unet_to_config(model, (32, 32, 3))
    for name, value in change.items():
        assert written[name] == value, name
    assert diffusers.unet_from_config(written) == model


NCSNPP = {
    **{"_class_name": "UNet2DModel", "act_fn": "silu", "attention_head_dim": None, "block_out_channels": [32, 64]},
    **{"down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D"], "flip_sin_to_cos": True, "freq_shift": 0},
    **{"up_block_types": ["AttnSkipUpBlock2D", "SkipUpBlock2D"], "layers_per_block": 1, "norm_eps": 1e-6},
    **{"mid_block_scale_factor": 1.41421356237, "norm_num_groups": None, "sample_size": 8},
    "time_embedding_type": "fourier",
}


def test_a_folder_of_score_sde_is_read_and_written(tmp_path):
    """Settings as in google/ncsnpp-celebahq-256: null for groups, no whole number for the scale."""
    model = diffusers.unet_from_config(NCSNPP)
    shapes, generator = layers.unet_shapes(model, (4, 4, 3)), np.random.default_rng(0)
    params = {path: generator.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    params = traverse_util.unflatten_dict(params, sep="/")
    (tmp_path / "config.json").write_text(json.dumps(NCSNPP))
    save_file(diffusers.params_to_unet2d(params, NCSNPP), tmp_path / "diffusion_pytorch_model.safetensors")
    loaded = interop.load(tmp_path, config={"scheduler": {"_class_name": "DDPMScheduler"}})
    assert loaded.model == model and isinstance(model, SkipUNet)
    interop.save_diffusers(tmp_path / "again", loaded)
    again = interop.load(tmp_path / "again")
    assert again.model == model
    for tree in (loaded.params, again.params):
        jax.tree.map(np.testing.assert_array_equal, tree, params)


def test_a_first_convolution_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"ch_mult must start with 1, got \[2, 2\]"):
        ddim.unet_from_config({"ch_mult": [2, 2]})
