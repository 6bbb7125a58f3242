"""U-ViT with weights named and laid out as in baofff/U-ViT: output, gradients, the way there and back, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.interop import layers, uvit
from ddpm_jax.models.uvit import SIZES, UViT
from tests.helpers import golden
from tests.interop.golden_networks import check, check_every_misfit_is_listed, check_there_and_back, network_of

SMALL = {"img_size": 4, "patch_size": 2, "in_chans": 3, "embed_dim": 16, "depth": 4, "num_heads": 2, "num_classes": 5}
ALL = SMALL | {"qkv_bias": True, "mlp_time_embed": True}
FAMILY = (uvit.uvit_from_config, uvit.uvit_to_params, uvit.params_to_uvit)


def random_weights(config):
    """Random weights of the shapes of their network, through ours: that the names are theirs is not shown by this."""
    _, wanted = uvit._names_and_shapes(config)
    rng = np.random.default_rng(0)
    flat = {path: rng.normal(size=shape).astype(np.float32) for path, shape in wanted.items()}
    return uvit.params_to_uvit(layers.traverse_util.unflatten_dict(flat, sep="/"), config)


def test_output_and_gradients(highest):
    """The weights follow the recipe of the golden file, and so does their order: by their names."""
    arrays, meta = golden("other/uvit")
    config, rng = meta["config"], np.random.RandomState(0)
    shapes = {name: array.shape for name, array in random_weights(config).items()}
    weights = {name: (0.2 * rng.standard_normal(shapes[name])).astype(np.float32) for name in sorted(shapes)}
    network = network_of(FAMILY, config, weights, arrays, meta)
    t, y = jnp.asarray(arrays["in.t"]), jnp.asarray(arrays["in.y"], jnp.int32)
    check(lambda params, x_t: network.model.apply({"params": params}, x_t, t, y=y), network, output="sample")


@pytest.mark.parametrize("config", [SMALL, ALL], ids=["published", "all"])
def test_there_and_back(config):
    network = network_of(FAMILY, config, random_weights(config), {}, {})
    check_there_and_back(network)
    check_every_misfit_is_listed(
        network,
        removed="mid_block.mlp.fc2.bias",
        cut="out_blocks.1.skip_linear.weight",
        layer="norm_out",
    )


def test_names():
    """The state dict of their UViT(mlp_time_embed=True, qkv_bias=True, num_classes=5), by hand."""
    block = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    owners = ["patch_embed.proj", "time_embed.0", "time_embed.2", "norm", "decoder_pred", "final_layer"]
    for name in ("in_blocks.0", "in_blocks.1", "mid_block", "out_blocks.0", "out_blocks.1"):
        owners += [f"{name}.{part}" for part in block + ["skip_linear"] * name.startswith("out")]
    expected = {f"{owner}.{leaf}" for owner in owners for leaf in ("weight", "bias")} | {
        "label_emb.weight",
        "pos_embed",
    }
    weights = random_weights(ALL)
    assert weights.keys() == expected
    assert weights["pos_embed"].shape == (1, 2 + 4, 16)
    assert weights["in_blocks.0.attn.qkv.weight"].shape == (48, 16)
    assert weights["out_blocks.0.skip_linear.weight"].shape == (16, 32)
    assert weights["patch_embed.proj.weight"].shape == (16, 3, 2, 2)
    without_bias = {name for name in expected if name.endswith("qkv.bias") or name.startswith("time_embed")}
    assert random_weights(SMALL).keys() == expected - without_bias


def test_published_configurations():
    cifar10 = {"img_size": 32, "patch_size": 2, "embed_dim": 512, "depth": 12, "num_heads": 8, "num_classes": -1}
    assert uvit.uvit_from_config(cifar10) == UViT()
    huge = {"img_size": 32, "patch_size": 2, "in_chans": 4, "embed_dim": 1152, "depth": 28, "num_heads": 16}
    huge |= {"mlp_ratio": 4, "qkv_bias": False, "mlp_time_embed": False, "num_classes": 1001, "conv": False}
    expected = UViT(**SIZES["H"], patch_size=2, num_classes=1001, out_channels=4, final_conv=False)
    assert uvit.uvit_from_config(huge) == expected


@pytest.mark.parametrize(("name", "value"), [("skip", False), ("qk_scale", 0.5)])
def test_other_configurations_are_refused(name, value):
    with pytest.raises(ValueError, match=f"not a U-ViT that is known here: {name}={value}"):
        uvit.uvit_from_config(SMALL | {name: value})


def test_positions_of_another_size_are_named():
    weights = random_weights(SMALL)
    with pytest.raises(ValueError, match=r"pos_embed is \[1, 5, 16\], expected \[1, 6, 16\]"):
        uvit.uvit_to_params(weights | {"pos_embed": weights["pos_embed"][:, 1:]}, SMALL)
    params = jax.tree.map(np.asarray, uvit.uvit_to_params(weights, SMALL))
    with pytest.raises(ValueError, match=r"positions is \[5, 16\], expected \[6, 16\]"):
        uvit.params_to_uvit(params | {"positions": params["positions"][1:]}, SMALL)
