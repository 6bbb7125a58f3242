"""What rematerialization keeps and what it computes twice, by policy; the gradient does not depend on it."""

import collections
import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import build
from ddpm_jax.config.run import Config, ModelConfig
from ddpm_jax.models import Classifier, UNet
from ddpm_jax.models.encoder import REMAT_POLICIES
from ddpm_jax.models.glide import JointUNet
from ddpm_jax.models.layers import Attention, ResBlock
from tests.models.test_dit import perturbed

# Wide enough for the 3x3 convolutions that CPUs compute in another way: 64 channels, 512 pixels.
UNET = UNet(64, (1, 2), num_res_blocks=1, attention_resolutions=(4,), dropout=0.5, out_channels=1, num_groups=8)
TRANSFORMER = replace(UNET, channels=16, channel_multipliers=(1,), attention_resolutions=(8,), transformer_depth=1)
JOINT = JointUNet(16, (1,), num_res_blocks=1, attention_resolutions=(8,), dropout=0.5, out_channels=1, num_groups=8)
X, T = jnp.zeros((8, 8, 8, 1)), jnp.zeros(8)
POLICIES = {"all": {}, **{name: {"remat": True, "remat_policy": name} for name in REMAT_POLICIES}}


def loss(model, inputs, params):
    keys = jax.random.split(jax.random.key(9), 8)
    return jnp.mean(model.apply({"params": params}, X, T, train=True, dropout_keys=keys, **inputs) ** 2)


def params_of(model, inputs):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), X, T, **inputs))["params"]


def kept(model, inputs):
    """Elements that the backward pass is given besides the parameters."""
    params = params_of(model, inputs)
    leaves = jax.tree.leaves(jax.eval_shape(lambda params: jax.vjp(partial(loss, model, inputs), params)[1], params))
    return sum(leaf.size for leaf in leaves) - sum(leaf.size for leaf in jax.tree.leaves(params))


def computed(model, inputs):
    """How often each operation is written down in the gradient, loops and branches included."""
    closed = jax.make_jaxpr(jax.grad(partial(loss, model, inputs)))(params_of(model, inputs))
    counts, inside = collections.Counter(), [closed.jaxpr]
    while inside:
        for equation in inside.pop().eqns:
            counts[equation.primitive.name] += 1
            parts = [part for value in equation.params.values() for part in jax.tree.leaves(value, is_leaf=is_program)]
            inside += [getattr(part, "jaxpr", part) for part in parts if is_program(part)]
    return counts


def is_program(value):
    return hasattr(value, "eqns")


@pytest.fixture(scope="module")
def counted():
    return {name: (kept(replace(UNET, **change), {}), computed(replace(UNET, **change), {}))
            for name, change in POLICIES.items()}  # fmt: skip


@pytest.mark.slow
def test_products_keeps_exactly_the_results_of_convolutions_and_dense_layers(counted):
    """Those that a derivative is asked for: not of conv_2, shortcut and out, after which there is only a sum.

    Eight res blocks: three of 64 channels at 8 x 8, five of 128 at 4 x 4, where four attention blocks are as well.
    """
    (everything, _), (nothing, _), (products, _) = (counted[name] for name in POLICIES)
    res_blocks = 8 * (3 * 64 * 64 + 5 * 16 * 128)  # conv_1
    time = 8 * (3 * 64 + 5 * 128)
    attention = 4 * 3 * 8 * 16 * 128  # query, key, value
    biases = 3 * 64 + 5 * 128 + 4 * 3 * 128  # of these dense layers, within what is kept
    assert products - nothing == res_blocks + time + attention - biases
    assert nothing < 0.2 * everything and products < 0.3 * everything


@pytest.mark.slow
def test_products_computes_none_of_them_twice(counted):
    (_, everything), (_, nothing), (_, products) = (counted[name] for name in POLICIES)
    assert products["conv_general_dilated"] == everything["conv_general_dilated"] < nothing["conv_general_dilated"]
    # Attention itself, four times q k^T and the product with v, whose size is that of no layer's result.
    assert products["dot_general"] == everything["dot_general"] + 4 * 2 < nothing["dot_general"]
    # Norms, 20 of them inside blocks.
    assert products["rsqrt"] == nothing["rsqrt"] == everything["rsqrt"] + 20


@pytest.mark.parametrize(
    "model, inputs",
    [
        (TRANSFORMER, {"context": jnp.zeros((8, 3, 5))}),
        (JOINT, {"context": jnp.zeros((8, 3, 16))}),
        (Classifier(16, (1,), 1, (8,), out_channels=4, num_groups=8, pool="adaptive"), {}),
    ],
    ids=["spatial transformer", "joint attention", "classifier"],
)
@pytest.mark.slow
def test_other_blocks_follow_the_policy(model, inputs):
    everything, nothing, products = (computed(replace(model, **change), inputs) for change in POLICIES.values())
    assert products["conv_general_dilated"] == everything["conv_general_dilated"] < nothing["conv_general_dilated"]
    assert everything["dot_general"] < products["dot_general"] < nothing["dot_general"]


@pytest.mark.slow
@pytest.mark.parametrize("policy", REMAT_POLICIES)
@pytest.mark.parametrize("block", ["res", "attention"])
def test_the_gradient_of_a_block(block, policy, highest):
    rematerialized = replace(UNET, remat=True, remat_policy=policy).rematerialized
    keys = jax.random.split(jax.random.key(3), 2)
    x, temb = (jax.random.normal(key, shape) for key, shape in zip(keys, ((2, 4, 4, 16), (2, 8)), strict=True))
    if block == "res":
        plain, again = (kind(32, 8, 0.5, jnp.float32) for kind in (ResBlock, rematerialized(ResBlock)))
        arguments = (x, temb, keys)
    else:
        plain, again = (kind(8, jnp.float32) for kind in (Attention, rematerialized(Attention)))
        arguments = (x,)
    params = perturbed(jax.jit(plain.init)(jax.random.key(0), *arguments)["params"])
    value = lambda module, params, x: jnp.sum(module.apply({"params": params}, x, *arguments[1:]) ** 2)
    gradients = [jax.jit(jax.grad(partial(value, module), (0, 1)))(params, x) for module in (plain, again)]
    total = math.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradients[0])))
    assert total > 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * total), *gradients)


def test_a_configuration_says_it():
    config = Config(model=ModelConfig(remat=True, remat_policy="products"))
    model = build.make_model(config, (8, 8, 1))
    assert model.remat and model.remat_policy == "products"
    with pytest.raises(ValueError, match=r"model\.remat_policy 'products' is for model.remat, which is off"):
        ModelConfig(remat_policy="products")
    with pytest.raises(ValueError, match=r"unknown remat_policy 'product'; did you mean 'products'\?"):
        kept(replace(UNET, remat=True, remat_policy="product"), {})
