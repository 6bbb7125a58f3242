"""DiT with the weights of facebookresearch/DiT and of diffusers: outputs, gradients, and the way there and back."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.guidance import classifier_free
from ddpm_jax.interop import dit
from ddpm_jax.models import bind
from ddpm_jax.models.dit import sincos_positions
from tests.helpers import relative
from tests.interop.golden_networks import check, check_every_misfit_is_listed, check_there_and_back, load, nhwc, stored

NETWORKS = {
    "dit_learn_sigma": (dit.dit_from_config, dit.dit_to_params, dit.params_to_dit),
    "dit_plain": (dit.dit_from_config, dit.dit_to_params, dit.params_to_dit),
    "dit_transformer2d": (dit.transformer2d_from_config, dit.transformer2d_to_params, dit.params_to_transformer2d),
}


@pytest.fixture(params=NETWORKS, scope="module")
def network(request, shared_golden):
    return stored(shared_golden, request.param, NETWORKS[request.param])


def inputs(arrays):
    return jnp.asarray(arrays["in.t"], jnp.float32), jnp.asarray(arrays["in.y"], jnp.int32)


def test_output_and_gradients(network, highest):
    t, y = inputs(network.arrays)
    check(
        lambda params, x_t: network.model.apply({"params": params}, x_t, t, y=y),
        network,
        output="sample",
        no_gradient=r"to_k\.bias",
        constants=("pos_embed",) if "pos_embed" in network.weights else (),
    )


def test_bfloat16_is_close_to_float32(network):
    arrays = network.arrays
    t, y = inputs(arrays)
    low = replace(network.model, dtype=jnp.bfloat16)
    output = jax.jit(low.apply)({"params": network.params}, nhwc(arrays["in.x"]), t, y=y)
    assert output.dtype == jnp.float32
    assert 1e-4 < relative(output, nhwc(arrays["out.sample"])) < 2e-2


def test_there_and_back(network):
    check_there_and_back(network)


def test_every_misfit_is_listed(network):
    weights = network.weights
    first = "transformer_blocks.0" if "proj_out_1.weight" in weights else "blocks.0"
    mlp = "ff.net.2" if "proj_out_1.weight" in weights else "mlp.fc2"
    check_every_misfit_is_listed(
        network,
        removed=f"{first}.{mlp}.bias",
        cut=f"{first}.{mlp}.weight",
        layer="modulation",
    )


def test_a_fused_projection_of_the_wrong_size_is_named(shared_golden):
    _, meta, weights = load(shared_golden, "dit_plain")
    weights["blocks.0.attn.qkv.weight"] = weights["blocks.0.attn.qkv.weight"][:-1]
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.qkv\[v\]\.weight is \[23, 24\], expected \[24, 24\]"):
        dit.dit_to_params(weights, meta["config"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: None, r"pos_embed is missing, expected \[1, 4, 24\]"),
        (lambda table: table[:, 1:], r"pos_embed is of shape \[1, 3, 24\], expected \[1, 4, 24\]"),
        (lambda table: table + np.float32(1e-3), r"not the table of sines and cosines: it differs by 0\.001"),
        (lambda table: table * np.float32(np.nan), r"not the table of sines and cosines: it differs by nan"),
    ],
)
def test_positions_other_than_sines_and_cosines_are_refused(shared_golden, change, message):
    _, meta, weights = load(shared_golden, "dit_plain")
    table = change(weights.pop("pos_embed"))
    with pytest.raises(ValueError, match=message):
        dit.dit_to_params(weights | ({} if table is None else {"pos_embed": table}), meta["config"])


def test_positions_with_a_base_size(shared_golden):
    """Trained on at another resolution: 2 x 2 patches whose places are those of every second one of 4 x 4."""
    network = stored(shared_golden, "dit_plain", NETWORKS["dit_plain"], base_size=4)
    table = sincos_positions(4, 4, 24).reshape(4, 4, 24)[::2, ::2].reshape(1, 4, 24)
    network = network._replace(weights=network.weights | {"pos_embed": table})
    check_there_and_back(network)
    t, y = inputs(network.arrays)
    apply = lambda model: model.apply({"params": network.params}, nhwc(network.arrays["in.x"]), t, y=y)
    assert relative(apply(network.model), apply(replace(network.model, base_size=None))) > 1e-3
    with pytest.raises(ValueError, match="pos_embed is not the table of sines and cosines: it differs by"):
        dit.dit_to_params(network.weights, network.meta["config"])


def test_null_label_and_guidance(shared_golden, highest):
    """forward_with_cfg: one x for both halves of the batch, guidance on the first three channels only."""
    arrays, meta, weights = load(shared_golden, "dit_learn_sigma")
    params = dit.dit_to_params(weights, meta["config"])
    model, (t, y) = dit.dit_from_config(meta["config"]), inputs(arrays)
    null = meta["config"]["num_classes"]
    table = params["condition_0"]["label"]["embedding"]
    dropped = np.where(np.array([1, 0, 0, 1]), null, arrays["in.y"])
    np.testing.assert_array_equal(table[dropped], arrays["out.y_emb_forced_drop"])

    x, half = nhwc(arrays["in.x"])[:2], 2
    conditional, unconditional = (bind(model, params, y=labels) for labels in (y[:half], y[half:]))
    guided = classifier_free(conditional, unconditional, scale=meta["config"]["cfg_scale"])(x, t[:half])
    expected = nhwc(arrays["out.cfg"])
    assert relative(guided[..., :3], expected[:half, ..., :3]) < 1e-4
    assert relative(guided[..., :3], expected[half:, ..., :3]) < 1e-4
    assert relative(conditional(x, t[:half])[..., 3:], expected[:half, ..., 3:]) < 1e-4
    assert relative(unconditional(x, t[half:])[..., 3:], expected[half:, ..., 3:]) < 1e-4


def published(**changes):
    """Weights of the shapes of DiT-XL/2, without memory."""
    config = {"input_size": 32, "patch_size": 2, "in_channels": 4, "hidden_size": 1152, "depth": 28, "num_heads": 16}
    config |= {"mlp_ratio": 4.0, "num_classes": 1000, "learn_sigma": True}
    names, wanted = dit._names_and_shapes(dit.dit_from_config(config), config, dit.DIT)
    shapes = {
        dit.layers.their_name(path, names): dit.layers.their_shape(path, shape, frozenset())
        for path, shape in wanted.items()
    }
    weights = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    return {**weights, "pos_embed": np.broadcast_to(np.float32(0), (1, 256, 1152)), **changes}, config


def test_config_is_read_off_the_weights():
    weights, config = published()
    assert dit.dit_config(weights) == config


def test_config_cannot_be_read_off_other_weights():
    weights, _ = published(**{"x_embedder.proj.weight": np.zeros((100, 4, 2, 2), np.float32)})
    with pytest.raises(ValueError, match=r"no published DiT has width 100, only \[384, 768, 1024, 1152\]"):
        dit.dit_config(weights)
    with pytest.raises(
        ValueError, match=r"not the weights of facebookresearch/DiT: missing x_embedder\.proj\.weight, pos"
    ):
        dit.dit_config({"conv_in.weight": np.zeros(3)})


def test_other_transformers_of_diffusers_are_refused():
    with pytest.raises(ValueError, match="not a DiT: activation_fn='geglu', norm_type='layer_norm'"):
        dit.transformer2d_from_config({"activation_fn": "geglu", "norm_type": "layer_norm"})
