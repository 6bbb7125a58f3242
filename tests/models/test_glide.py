"""GLIDE's text encoder and the attention to it: padding, special cases, errors. Their numbers: tests/interop."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models import Glide
from ddpm_jax.models.glide import JointAttention, JointUNet, TextEncoder
from ddpm_jax.models.layers import Attention
from tests.helpers import relative
from tests.models.test_dit import assert_remat_of, perturbed

TEXT = TextEncoder(out_features=32, width=12, depth=2, num_heads=3, vocabulary=20, num_positions=5)
UNET = JointUNet(
    channels=8, channel_multipliers=(1,), num_res_blocks=1, num_groups=4, attention_resolutions=(), dropout=0.5,
    class_embed_type="identity",
)  # fmt: skip
MODEL = Glide(TEXT, UNET)
TOKENS = jnp.array([[3, 7, 1, 19, 19], [5, 2, 19, 19, 19]], jnp.int32)
MASK = jnp.array([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]], bool)
X_T, T = jax.random.normal(jax.random.key(1), (2, 4, 4, 3)), jnp.array([3.0, 700.0])


def random_params(model, *inputs, **keywords):
    """N(0, 0.3^2), also where layers that end a residual branch start near zero."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs, **keywords)["params"]
    return perturbed(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))


def test_padding_is_not_read():
    encode = partial(jax.jit(TEXT.apply), {"params": random_params(TEXT, TOKENS, MASK)})
    y, context = encode(TOKENS, MASK)
    for left, right in zip(encode(jnp.where(MASK, TOKENS, 11), MASK), (y, context), strict=True):
        np.testing.assert_array_equal(left, right)
    # Every other token sees every other.
    for place in range(2):
        other, _ = encode(TOKENS.at[:, place].add(1), MASK)
        assert np.abs(other - y).max(axis=1).min() > 1e-3
    # And a text of padding alone is the same, whatever its tokens.
    null, _ = encode(TOKENS, jnp.zeros_like(MASK))
    np.testing.assert_array_equal(null[0], null[1])


def test_joint_attention_without_a_context_is_self_attention(highest):
    x = jax.random.normal(jax.random.key(3), (2, 3, 4, 8))
    joint = JointAttention(4, jnp.float32, 1e-5, 2)
    params = random_params(joint, x, jnp.zeros((2, 0, 12)))
    alone = {name.removeprefix("image_"): layer for name, layer in params.items() if "context" not in name}
    expected = Attention(4, jnp.float32, 1e-5, 2).apply({"params": alone}, x)
    assert np.abs(expected - x).max() > 0.1
    np.testing.assert_allclose(joint.apply({"params": params}, x, jnp.zeros((2, 0, 12))), expected, atol=1e-5)


def test_joint_attention_against_numpy(highest):
    """One softmax over the keys of the context and of the image, head by head, in float64."""
    rng = np.random.default_rng(0)
    x, context = rng.normal(size=(2, 2, 3, 8)), rng.normal(size=(2, 5, 12))
    joint = JointAttention(4, jnp.float32, 1e-5, 2)
    inputs = jnp.asarray(x, jnp.float32), jnp.asarray(context, jnp.float32)
    variables = {"params": random_params(joint, *inputs)}
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])

    groups = x.reshape(2, 6, 4, 2)
    mean, variance = groups.mean(axis=(1, 3), keepdims=True), groups.var(axis=(1, 3), keepdims=True)
    h = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(2, 6, 8)
    h = h * params["norm"]["scale"] + params["norm"]["bias"]

    def dense(name, inputs):
        return inputs @ params[name]["kernel"] + params[name]["bias"]

    y = np.zeros((2, 6, 8))
    for head in (slice(0, 4), slice(4, 8)):
        q = dense("image_query", h)[..., head]
        k = np.concatenate([dense("image_key", h), dense("context_key", context)], axis=1)[..., head]
        v = np.concatenate([dense("image_value", h), dense("context_value", context)], axis=1)[..., head]
        weights = np.exp(q @ k.swapaxes(1, 2) / 2)
        y[..., head] = weights / weights.sum(axis=-1, keepdims=True) @ v
    expected = x + dense("image_out", y).reshape(x.shape)
    assert relative(joint.apply(variables, *inputs), expected) < 1e-5


def test_the_whole_is_its_parts():
    """model = unet(y, context), (y, context) = text(tokens, mask), with the dropout of the U-Net."""
    params = random_params(MODEL, X_T, T, tokens=TOKENS, mask=MASK)

    @jax.jit
    def both(params, key):
        options = {"train": True, "dropout_keys": jax.random.split(key, 2)}
        y, context = TEXT.apply({"params": params["text"]}, TOKENS, MASK)
        part = UNET.apply({"params": params["unet"]}, X_T, T, y=y, context=context, **options)
        return part, MODEL.apply({"params": params}, X_T, T, tokens=TOKENS, mask=MASK, **options)

    part, whole = both(params, jax.random.key(4))
    assert relative(part, whole) < 1e-5
    assert relative(both(params, jax.random.key(5))[1], whole) > 1e-2


@pytest.mark.campaign
def test_remat():
    """The gradient is the same, with 5 res blocks and the attention of the middle computed again."""
    given = {"y": jnp.ones((2, 32)), "context": jnp.ones((2, 5, 12))}
    params = random_params(UNET, X_T, T, **given)

    def gradient(model):
        return jax.grad(lambda params: jnp.mean(model.apply({"params": params}, X_T, T, **given) ** 2))

    assert_remat_of(gradient, UNET, params, 6)


@pytest.mark.parametrize(
    ("unet", "text", "message"),
    [
        ({"class_embed_type": None}, {}, "unet.class_embed_type 'identity', got 32, 32 and None"),
        ({"channels": 16}, {}, "text.out_features must be 4 unet.channels and .*, got 32, 64 and 'identity'"),
        ({"transformer_depth": 1}, {}, "transformer_depth 0 and mid_attention_norm True, got 1 and True"),
        ({"mid_attention_norm": False}, {}, "transformer_depth 0 and mid_attention_norm True, got 0 and False"),
        ({"mid_scale": 2.0}, {}, "mid_attention_groups None and mid_scale 1, got None and 2.0"),
        ({}, {"num_positions": 4}, r"tokens must be integer \[2, 4\], got int32\[2, 5\]"),
    ],
)
def test_settings_that_do_not_fit(unet, text, message):
    model = Glide(replace(TEXT, **text), replace(UNET, **unet))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(model.init, tokens=TOKENS, mask=MASK), jax.random.key(0), X_T, T)


@pytest.mark.parametrize(
    ("tokens", "mask", "message"),
    [
        (TOKENS[:1], MASK[:1], r"tokens must be \[B, N\] with B = 2, got \[1, 5\]"),
        (TOKENS.astype(jnp.float32), MASK, r"tokens must be integer \[2, 5\], got float32\[2, 5\]"),
        (TOKENS, MASK[:1], r"mask must be bool \[2, 5\], got bool\[1, 5\]"),
        (TOKENS, TOKENS, r"mask must be bool \[2, 5\], got int32\[2, 5\]"),
    ],
)
def test_errors(tokens, mask, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(MODEL.init, tokens=tokens, mask=mask), jax.random.key(0), X_T, T)


@pytest.mark.parametrize("context", [None, jnp.zeros((2, 12))])
def test_the_unet_needs_a_context(context):
    with pytest.raises(ValueError, match=r"context must be \[B, N, D\], got (none|\(2, 12\))"):
        jax.eval_shape(partial(UNET.init, y=jnp.zeros((2, 32)), context=context), jax.random.key(0), X_T, T)
