"""The noisy classifier's behaviour: settings, dropout, precision. Its numbers: tests/interop/test_openai.py."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models import Classifier
from tests.helpers import relative

SMALL = Classifier(
    channels=16,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    dropout=0.5,
    out_channels=7,
    num_groups=8,
    num_head_channels=8,
    downsample="resblock",
)
T = jnp.array([0.0, 999.0], jnp.float32)


def images(size=8):
    return jax.random.normal(jax.random.key(1), (2, size, size, 3), jnp.float32)


def parameters(model):
    initial = jax.jit(model.init)(jax.random.key(0), images(), T)["params"]
    leaves, treedef = jax.tree.flatten(initial)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noise = [0.2 * jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.map(jnp.add, initial, treedef.unflatten(noise))


@pytest.mark.parametrize(("pool", "fixed"), [("attention", True), ("adaptive", False), ("spatial", False)])
def test_only_attention_fixes_the_image_size(pool, fixed):
    model = replace(SMALL, pool=pool, attention_resolutions=None, attention_factors=(2,))
    shapes = [
        jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(model.init, jax.random.key(0), images(size), T))
        for size in (8, 16)
    ]
    assert (shapes[0] != shapes[1]) is fixed


@pytest.mark.campaign
def test_adaptive_pool_is_a_linear_map_of_the_mean(highest):
    """With the last norm's scale at zero, every pixel is silu(bias), and the logits follow from it alone."""
    model = replace(SMALL, pool="adaptive")
    params = parameters(model)
    params["norm_out"]["scale"] = jnp.zeros(32)
    bias, logits = (np.asarray(params[name]["bias"], np.float64) for name in ("norm_out", "logits"))
    expected = bias / (1 + np.exp(-bias)) @ np.asarray(params["logits"]["kernel"], np.float64) + logits
    actual = jax.jit(model.apply)({"params": params}, images(), T)
    assert relative(actual, np.stack([expected, expected])) < 1e-5


@pytest.mark.slow
def test_dropout_of_an_example_depends_on_its_key_alone(highest):
    apply = partial(jax.jit(SMALL.apply, static_argnames="train"), {"params": parameters(SMALL)}, train=True)
    keys = jax.random.split(jax.random.key(3), 2)
    together = apply(images(), T, dropout_keys=keys)
    assert relative(together[1:], apply(images()[1:], T[1:], dropout_keys=keys[1:])) < 1e-5
    assert relative(together, apply(images(), T, dropout_keys=keys[::-1])) > 0.05


@pytest.mark.campaign
def test_rematerialization_keeps_gradients(highest):
    params = parameters(SMALL)

    def gradient(model):
        return jax.jit(jax.grad(lambda params: jnp.mean(model.apply({"params": params}, images(), T) ** 2)))(params)

    plain, again = gradient(SMALL), gradient(replace(SMALL, remat=True))
    total = math.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(plain)))
    for left, right in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6 * total)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": "mean"}, "unknown pool 'mean'.*attention, adaptive, spatial, spatial_v2"),
        ({"num_head_channels": None}, "pool 'attention' needs num_head_channels, got None"),
        ({"num_groups": 7}, "channels 16 is not divisible by num_groups 7"),
    ],
)
def test_errors_while_tracing(change, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(replace(SMALL, **change).init, jax.random.key(0), images(), T)
