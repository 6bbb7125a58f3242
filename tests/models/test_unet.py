"""The U-Net's behaviour: size, dropout, precision, initial output, errors. Its numbers: tests/interop."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models import UNet
from ddpm_jax.models.layers import GroupNorm, dropout, upsample_nearest
from tests.helpers import relative

SMALL = UNet(
    channels=16,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    dropout=0.5,
    out_channels=1,
    num_groups=8,
)
INIT = jax.jit(SMALL.init)
APPLY = jax.jit(SMALL.apply, static_argnames="train")
T = jnp.array([0.0, 10.5, 999.0], jnp.float32)


def images(batch=3, size=8):
    return jax.random.normal(jax.random.key(1), (batch, size, size, 1), jnp.float32)


@pytest.fixture(scope="module")
def params():
    """Random parameters of SMALL: N(0, 0.2^2) added to all, or most of the network would end near zero."""
    initial = INIT(jax.random.key(0), images(), T)["params"]
    leaves, treedef = jax.tree.flatten(initial)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noise = [0.2 * jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.map(jnp.add, initial, treedef.unflatten(noise))


def test_cifar10_network_has_the_size_in_the_paper():
    x_t, t = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    shapes = jax.eval_shape(UNet().init, jax.random.key(0), x_t, t)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 35_746_307


def test_attention_is_where_it_is_asked_for():
    def attentions(resolutions):
        model = replace(SMALL, attention_resolutions=resolutions)
        shapes = jax.eval_shape(model.init, jax.random.key(0), images(), T)["params"]
        return {name for name in shapes if "attention" in name}

    assert attentions(()) == {"mid_attention"}
    assert attentions((4,)) == {"mid_attention", "down_1_attention_0", "up_1_attention_0", "up_1_attention_1"}
    assert attentions((8,)) == {"mid_attention", "down_0_attention_0", "up_0_attention_0", "up_0_attention_1"}


def test_initial_output_is_near_zero():
    variables = INIT(jax.random.key(0), images(), T)
    output = APPLY(variables, images(), T)
    assert 0 < np.abs(output).max() < 1e-3


def test_dropout_is_off_at_evaluation(params):
    evaluated = APPLY({"params": params}, images(), T)
    no_dropout = jax.jit(partial(replace(SMALL, dropout=0.0).apply, train=True))
    without = no_dropout({"params": params}, images(), T)
    trained = APPLY({"params": params}, images(), T, train=True, rngs={"dropout": jax.random.key(3)})
    np.testing.assert_array_equal(evaluated, without)
    assert relative(trained, evaluated) > 0.1


def test_dropout_keeps_the_mean_and_depends_on_every_key():
    keys = jax.random.split(jax.random.key(4), 4)
    y = np.asarray(dropout(jnp.ones((4, 100, 100)), keys, 0.1))
    assert len(np.unique(y)) == 2
    # Binomial: five standard errors at n = 40000.
    assert abs((y == 0).mean() - 0.1) < 5 * math.sqrt(0.09 / y.size)
    np.testing.assert_allclose(y.max(), 1 / 0.9, rtol=1e-6)
    masks = {mask.tobytes() for mask in y == 0}
    assert len(masks) == 4


def test_each_res_block_draws_from_its_own_key():
    keys = jax.random.split(jax.random.key(5), 3)
    blocks = [next(keys_of) for keys_of in [SMALL._block_keys(3, True, keys)] for _ in range(8)]
    assert len({np.asarray(jax.random.key_data(key)).tobytes() for block in blocks for key in block}) == 24


@pytest.mark.parametrize("source", ["dropout_keys", "dropout_keys vmapped", "rngs vmapped"])
def test_masks_of_an_example_do_not_depend_on_the_batch(source, params, highest):
    @jax.jit
    def apply(x, t, keys):
        if source == "dropout_keys":
            return SMALL.apply({"params": params}, x, t, train=True, dropout_keys=keys)

        def one(x, t, key):
            extra = {"dropout_keys": key[None]} if "keys" in source else {"rngs": {"dropout": key}}
            return SMALL.apply({"params": params}, x[None], t[None], train=True, **extra)[0]

        return jax.vmap(one)(x, t, keys)

    keys = jax.random.split(jax.random.key(6), 3)
    together = apply(images(), T, keys)
    alone = apply(images()[1:2], T[1:2], keys[1:2])
    shuffled = apply(images()[::-1], T[::-1], keys[::-1])
    assert relative(together[1:2], alone) < 1e-5
    assert relative(together[::-1], shuffled) < 1e-5
    other_key = apply(images(), T, keys[::-1])
    assert relative(other_key[0], together[0]) > 0.1


def test_vmapped_equals_batched_with_gradients(params, highest):
    keys = jax.random.split(jax.random.key(7), 3)

    def batched(params):
        return jnp.mean(SMALL.apply({"params": params}, images(), T, train=True, dropout_keys=keys) ** 2)

    def vmapped(params):
        one = lambda x, t, key: SMALL.apply({"params": params}, x[None], t[None], train=True, dropout_keys=key[None])[0]
        return jnp.mean(jax.vmap(one)(images(), T, keys) ** 2)

    expected, actual = jax.jit(lambda params: (jax.grad(batched)(params), jax.grad(vmapped)(params)))(params)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for left, right in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6 * scale)


def test_bfloat16_computes_in_bfloat16_with_float32_parameters(params):
    model = replace(SMALL, dtype=jnp.bfloat16)
    for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), images(), T)):
        assert leaf.dtype == jnp.float32
    expected = APPLY({"params": params}, images(), T)
    apply = jax.jit(partial(model.apply, capture_intermediates=True))
    output, state = apply({"params": params}, images(), T)
    assert output.dtype == jnp.float32
    # 8 bits, over 20 layers in a row: 0.015 to 0.030 measured for such parameters. And not float32 in disguise.
    assert 1e-3 < relative(output, expected) < 4e-2
    blocks = state["intermediates"]
    assert blocks["down_0_res_0"]["conv_1"]["__call__"][0].dtype == jnp.bfloat16
    assert blocks["mid_attention"]["query"]["__call__"][0].dtype == jnp.bfloat16


def test_group_norm_keeps_its_digits_far_from_zero(highest):
    """Mean 1000, deviation 1: E[x^2] - E[x]^2 in float32 would be off by several per cent."""
    x = 1000 + np.random.default_rng(0).normal(size=(2, 4, 4, 6)).astype(np.float32)
    scale, bias = np.arange(1.0, 7.0, dtype=np.float32), np.linspace(-1, 1, 6, dtype=np.float32)
    groups = x.astype(np.float64).reshape(2, 16, 3, 2)
    mean, variance = groups.mean(axis=(1, 3), keepdims=True), groups.var(axis=(1, 3), keepdims=True)
    expected = ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape) * scale + bias
    actual = GroupNorm(3).apply({"params": {"scale": scale, "bias": bias}}, x)
    assert relative(actual, expected) < 1e-4


def test_group_norm_epsilon():
    """At a variance of 1e-6 the epsilon halves the square of the output."""
    x = 1e-3 * jnp.array([-1.0, 1.0, 1.0, -1.0], jnp.float32).reshape(1, 2, 2, 1)
    actual = GroupNorm(1).apply({"params": {"scale": jnp.ones_like(x[0, 0, 0]), "bias": jnp.zeros_like(x[0, 0, 0])}}, x)
    np.testing.assert_allclose(actual, x * 1e3 / math.sqrt(2), rtol=1e-5)


def test_upsampling_repeats_pixels():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(upsample_nearest(jnp.asarray(x)), x.repeat(2, axis=1).repeat(2, axis=2))


@pytest.mark.parametrize(
    ("change", "x_shape", "t", "message"),
    [
        ({}, (8, 8, 1), jnp.zeros(8), r"x_t must be \[B, H, W, C\], got shape \(8, 8, 1\)"),
        ({}, (2, 8, 8, 1), jnp.zeros(3, jnp.float32), r"t must be \[B\] float with B = 2, got float32\[3\]"),
        (
            {},
            (2, 8, 8, 1),
            jnp.zeros((2, 1), jnp.float32),
            r"t must be \[B\] float with B = 2, got float32\[2, 1\]",
        ),
        ({}, (2, 8, 8, 1), jnp.zeros(2, jnp.int32), r"t must be \[B\] float with B = 2, got int32\[2\]"),
        ({}, (2, 8, 9, 1), jnp.zeros(2), "H and W must be divisible by 2, got 8 x 9"),
        ({"num_groups": 7}, (2, 8, 8, 1), jnp.zeros(2), "channels 16 is not divisible by num_groups 7"),
        ({"attention_resolutions": (16,)}, (2, 8, 8, 1), jnp.zeros(2), r"\(16,\) are not all among \[8, 4\]"),
        ({"num_res_blocks": 0}, (2, 8, 8, 1), jnp.zeros(2), "num_res_blocks must be at least 1, got 0"),
        ({"channel_multipliers": ()}, (2, 8, 8, 1), jnp.zeros(2), "channel_multipliers must be positive"),
        ({"dropout": 1.0}, (2, 8, 8, 1), jnp.zeros(2), r"dropout must lie in \[0, 1\), got 1.0"),
    ],
)
def test_errors_while_tracing(change, x_shape, t, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(replace(SMALL, **change).init, jax.random.key(0), jnp.zeros(x_shape), t)


def test_dropout_keys_must_be_one_per_example(params):
    with pytest.raises(ValueError, match=r"dropout_keys must be \[B\] with B = 3, got \[2\]"):
        keys = jax.random.split(jax.random.key(0), 2)
        SMALL.apply({"params": params}, images(), T, train=True, dropout_keys=keys)
