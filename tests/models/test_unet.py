"""The U-Net's behaviour: size, dropout, precision, initial output, errors. Its numbers: tests/interop."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models import UNet
from ddpm_jax.models.layers import GroupNorm, attend, average_pool, dropout, upsample_nearest
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


@pytest.mark.slow
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
    blocks = [next(keys_of) for keys_of in [SMALL.block_keys(3, True, keys)] for _ in range(8)]
    assert len({np.asarray(jax.random.key_data(key)).tobytes() for block in blocks for key in block}) == 24


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_heads_are_separate_attentions():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, n, 12)).astype(np.float32) for n in (5, 7, 7))
    expected = []
    for i in range(3):
        q_i, k_i, v_i = (x[:, :, 4 * i : 4 * i + 4].astype(np.float64) for x in (q, k, v))
        weights = np.exp(q_i @ k_i.swapaxes(1, 2) / 2)
        expected.append(weights / weights.sum(axis=-1, keepdims=True) @ v_i)
    assert relative(attend(*map(jnp.asarray, (q, k, v)), 3), np.concatenate(expected, axis=-1)) < 1e-5


def test_pooling_averages_four_pixels():
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 5)).astype(np.float32)
    expected = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    np.testing.assert_allclose(average_pool(jnp.asarray(x)), expected, atol=1e-6)


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
        *(
            (change, (2, 8, 8, 1), jnp.zeros(2), message)
            for change, message in (
                ({"channel_multipliers": (1, 1.3)}, "channels 16 times the multiplier 1.3 is not a whole number"),
                ({"channel_multipliers": (1, 1.25)}, "channels 20 is not divisible by num_groups 8"),
                ({"attention_factors": (2,)}, r"attention_factors must be None, got \(4,\) and \(2,\)"),
                ({"attention_resolutions": None}, "attention_factors must be None, got None and None"),
                (
                    {"attention_resolutions": None, "attention_factors": (2, 4)},
                    r"attention_factors \(2, 4\) are not all among \[1, 2\]",
                ),
                ({"attention_factors_up": (4,)}, r"attention_factors_up \(4,\) are not all among \[1, 2\]"),
                ({"activation": "swish"}, "unknown activation 'swish'.*silu, gelu, mish, relu"),
                ({"time_embedding": "learned"}, "unknown time_embedding 'learned'.*positional, fourier"),
                (
                    {"time_embedding": "fourier", "time_endpoint": False},
                    "time_endpoint False goes with time_embedding 'positional', got 'fourier'",
                ),
                ({"mid_attention_groups": 5}, "mid_attention_groups 5 does not divide the 32 channels of the middle"),
                ({"mid_attention_groups": 4, "mid_attention": False}, "mid_attention_groups 4 needs mid_attention"),
                ({"mid_scale": 0.0}, "mid_scale must be finite and not 0, got 0.0"),
                ({"num_heads": 2, "num_head_channels": 8}, "num_heads 2 excludes num_head_channels 8"),
                ({"num_heads": 3}, "32 is not divisible by num_heads 3"),
                ({"num_heads_upsample": 3}, "32 is not divisible by num_heads 3"),
                ({"num_head_channels": 12}, "num_head_channels 12 does not divide the 32 channels"),
                ({"downsample_padding": 2}, "downsample_padding must be 0 or 1, got 2"),
                ({"downsample": "maxpool"}, "unknown downsample 'maxpool'.*conv, pool, resblock"),
                ({"upsample": "resblok"}, "unknown upsample 'resblok'; did you mean 'resblock'"),
                ({"downsample": ("conv", "pool")}, "downsample must have 1 entries, one per step, got 2"),
                ({"num_classes": 5}, r"y must be integer \[2\], got none"),
                ({"class_embed_type": "timestep"}, r"y must be floating \[2\], got none"),
                ({"class_embed_type": "label"}, "unknown class_embed_type 'label'.*timestep, identity"),
                ({"class_embed_type": "identity", "num_classes": 5}, "'identity' excludes num_classes 5"),
            )
        ),
    ],
)
def test_errors_while_tracing(change, x_shape, t, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(replace(SMALL, **change).init, jax.random.key(0), jnp.zeros(x_shape), t)


def test_dropout_keys_must_be_one_per_example(params):
    with pytest.raises(ValueError, match=r"dropout_keys must be \[B\] with B = 3, got \[2\]"):
        keys = jax.random.split(jax.random.key(0), 2)
        SMALL.apply({"params": params}, images(), T, train=True, dropout_keys=keys)


def test_class_conditioning_adds_an_embedding(params, highest):
    """A label, its row of the table given as the embedding itself, and that row in the bias of the time embedding."""
    table = jax.random.normal(jax.random.key(8), (5, 64), jnp.float32)
    y = jnp.array([3, 0, 3], jnp.int32)
    labelled = jax.jit(replace(SMALL, num_classes=5).apply)
    with_table = {"params": params | {"class_embedding": {"embedding": table}}}
    output = labelled(with_table, images(), T, y=y)
    identity = jax.jit(replace(SMALL, class_embed_type="identity").apply)({"params": params}, images(), T, y=table[y])
    assert relative(output, identity) < 1e-5
    moved = params | {"time_2": params["time_2"] | {"bias": params["time_2"]["bias"] + table[3]}}
    without = APPLY({"params": moved}, images(), T)
    assert relative(output[::2], without[::2]) < 1e-5
    assert relative(output[1], without[1]) > 0.1
    assert np.isnan(labelled(with_table, images(), T, y=y + 2)[0]).all()


def test_y_without_classes_is_refused(params):
    with pytest.raises(ValueError, match="y was given to a model without classes"):
        SMALL.apply({"params": params}, images(), T, y=jnp.zeros(3, jnp.int32))


@pytest.mark.parametrize("option", ["low_res", "concat"])
def test_images_of_another_shape_are_refused(option, params):
    with pytest.raises(ValueError, match=rf"{option} must be \[B, .*got \(3, 16, 8, 1\)"):
        SMALL.apply({"params": params}, images(), T, **{option: jnp.zeros((3, 16, 8, 1))})


def test_low_res_is_resized_and_concatenated(params, highest):
    """Weights half of one pixel and its neighbour at 2x: align_corners=False, edges repeated."""
    low = np.random.default_rng(1).normal(size=(3, 4, 4, 1)).astype(np.float32)

    def twice(x, axis):
        padded = np.concatenate([x.take([0], axis), x, x.take([-1], axis)], axis)
        first, middle, last = (padded.take(range(i, i + x.shape[axis]), axis) for i in range(3))
        return np.stack([0.25 * first + 0.75 * middle, 0.75 * middle + 0.25 * last], axis + 1).reshape(
            *x.shape[:axis], -1, *x.shape[axis + 1 :]
        )

    wider = params["conv_in"]["kernel"]
    wider = {"params": params | {"conv_in": params["conv_in"] | {"kernel": jnp.concatenate([wider, 0.5 * wider], 2)}}}
    resized = APPLY(wider, images(), T, low_res=jnp.asarray(low))
    concatenated = APPLY(wider, images(), T, concat=jnp.asarray(twice(twice(low, 1), 2)))
    summed = APPLY({"params": params}, images() + 0.5 * twice(twice(low, 1), 2), T)
    assert relative(resized, concatenated) < 1e-5
    assert relative(resized, summed) < 1e-5


def test_attention_by_factor_is_attention_by_resolution(params):
    by_factor = replace(SMALL, attention_resolutions=None, attention_factors=(2,))
    np.testing.assert_array_equal(
        jax.jit(by_factor.apply)({"params": params}, images(), T), APPLY({"params": params}, images(), T)
    )
    sizes = jax.eval_shape(by_factor.init, jax.random.key(0), images(size=16), T)["params"]
    assert {name for name in sizes if "attention" in name} == {name for name in params if "attention" in name}


def test_head_channels_give_heads(params):
    """32 channels wherever SMALL attends: four heads of 8."""
    by_size, by_number = (
        jax.jit(replace(SMALL, **change).apply)({"params": params}, images(), T)
        for change in ({"num_head_channels": 8}, {"num_heads": 4})
    )
    np.testing.assert_array_equal(by_size, by_number)
    assert relative(by_size, APPLY({"params": params}, images(), T)) > 1e-3


def test_resampling_per_step():
    model = replace(SMALL, channel_multipliers=(1, 1.5, 2), attention_resolutions=(), num_groups=4)
    model = replace(model, downsample=("resblock", "pool"), upsample=("nearest", "resblock"))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images(), T)["params"]
    names = {name: "norm_1" in shapes[name] for name in shapes if "sample" in name}
    assert names == {"down_0_downsample": True, "up_2_upsample": True}
    assert shapes["down_1_res_0"]["conv_1"]["kernel"].shape == (3, 3, 16, 24)
    assert shapes["up_2_upsample"]["conv_1"]["kernel"].shape == (3, 3, 32, 32)


def test_centred_input(params, highest):
    output = jax.jit(replace(SMALL, center_input_sample=True).apply)({"params": params}, (images() + 1) / 2, T)
    assert relative(output, APPLY({"params": params}, images(), T)) < 1e-5


@pytest.mark.slow
def test_rematerialization_keeps_gradients_and_stores_less(params, highest):
    """Bytes kept between the forward and the backward pass, from shapes, so for any device.

    XLA's memory_analysis() shows none of it on a CPU, where the compiler joins the two computations of a block again.
    Compiled for a TPU v5e, 7 res blocks of 32 channels on 64 images of 32 x 32: 1005 MiB without, 757 with.
    """
    keys = jax.random.split(jax.random.key(9), 3)

    def loss(model, params):
        output = model.apply({"params": params}, images(), T, train=True, dropout_keys=keys)
        return jnp.mean(output**2)

    remat = replace(SMALL, remat=True)
    plain, again = (jax.jit(jax.grad(partial(loss, model)))(params) for model in (SMALL, remat))
    total = math.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(plain)))
    for left, right in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6 * total)

    def stored(model):
        kept = jax.eval_shape(lambda params: jax.vjp(partial(loss, model), params)[1], params)
        own = sum(leaf.size for leaf in jax.tree.leaves(params))
        return sum(leaf.size for leaf in jax.tree.leaves(kept)) - own

    assert stored(remat) < 0.4 * stored(SMALL)
