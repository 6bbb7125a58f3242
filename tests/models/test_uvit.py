"""U-ViT: size, tokens, long skip connections, precision, errors."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models.uvit import SIZES, UViT
from tests.helpers import relative
from tests.models.test_dit import assert_remat_of, perturbed

SMALL = UViT(width=16, depth=5, num_heads=2, num_classes=3, out_channels=2, final_conv=False)
T, Y = jnp.array([0.0, 500.5], jnp.float32), jnp.array([0, 2], jnp.int32)


def images(height=4, width=6):
    return jax.random.normal(jax.random.key(1), (2, height, width, 1), jnp.float32)


@pytest.fixture(scope="module")
def params():
    return perturbed(jax.jit(SMALL.init)(jax.random.key(0), images(), T, y=Y)["params"])


def apply(model, params, x=None, t=T, y=Y):
    return jax.jit(model.apply)({"params": params}, images() if x is None else x, t, y=y)


def count(model, size, channels):
    x_t, t = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    labels = None if model.num_classes is None else jax.ShapeDtypeStruct((1,), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x_t, t, y=labels)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def test_published_sizes():
    """Bao et al. 2023, table 1: 44, 58, 131, 287 and 501 million parameters."""
    assert UViT() == UViT(**SIZES["S"], patch_size=2)
    cifar10 = count(UViT(), 32, 3)
    d, blocks, pairs, patch = 512, 13, 6, 2 * 2 * 3
    block = 4 * d * d + d + 2 * 4 * d * d + 5 * d + 4 * d
    rest = (patch + 1) * d + (1 + 256) * d + 2 * d + d * patch + patch + 9 * 3 * 3 + 3
    assert cifar10 == blocks * block + pairs * (2 * d * d + d) + rest
    assert round(cifar10 / 1e6) == 44
    assert round(count(UViT(**SIZES["S (Deep)"]), 32, 3) / 1e6) == 58
    for name, millions, size in (("M", 131, 64), ("L", 287, 64), ("H", 501, 32)):
        latent = name == "H"
        model = UViT(**SIZES[name], patch_size=2 if latent else 4, num_classes=1001 if latent else 1000)
        model = replace(model, out_channels=4 if latent else 3, final_conv=not latent)
        assert round(count(model, size, model.out_channels) / 1e6) == millions, name


def test_patches_are_tokens_like_any_other(params, highest):
    """Without positions, permuted patches give permuted patches: nothing else tells them apart."""
    params = params | {"positions": jnp.zeros_like(params["positions"])}

    def permuted(x):
        patches = x.reshape(2, 2, 2, 3, 2, -1).transpose(0, 1, 3, 2, 4, 5).reshape(2, 6, 2, 2, -1)
        patches = patches[:, jnp.array([4, 0, 5, 2, 1, 3])]
        return patches.reshape(2, 2, 3, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 6, -1)

    expected = permuted(apply(SMALL, params))
    assert relative(apply(SMALL, params, permuted(images())), expected) < 1e-5
    assert relative(apply(SMALL, params), expected) > 0.1


def test_class_then_time_then_patches(params, highest):
    """Positions 0 and 1 add to class and time: moving one into the table of labels changes nothing."""
    moved = jax.tree.map(lambda leaf: leaf, params)
    moved["label"] = {"embedding": params["label"]["embedding"] + params["positions"][:1]}
    moved["positions"] = params["positions"].at[0].set(0.0)
    assert relative(apply(SMALL, moved), apply(SMALL, params)) < 1e-5
    assert relative(apply(SMALL, params, t=T + 100), apply(SMALL, params)) > 1e-2
    assert relative(apply(SMALL, params, y=Y[::-1]), apply(SMALL, params)) > 1e-2


def test_long_skip_connections_are_last_in_first_out(params, highest):
    """Where up_1 takes nothing but its skip connection, that is down_0's output, and all between is without effect."""
    width = SMALL.width
    only_skip = jnp.concatenate([jnp.zeros((width, width)), jnp.eye(width)])
    params = params | {"up_1": params["up_1"] | {"skip": {"kernel": only_skip, "bias": jnp.zeros(width)}}}
    grads = jax.jit(jax.grad(lambda params: jnp.sum(SMALL.apply({"params": params}, images(), T, y=Y) ** 2)))(params)
    norm = {name: sum(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads[name])) for name in grads}
    for name in ("down_1", "mid", "up_0"):
        assert norm[name] == 0, name
    assert min(norm["down_0"], norm["up_1"], norm["in"], norm["label"]) > 1e-3
    # The same as a network of three blocks whose middle is skipped.
    short = replace(SMALL, depth=3)
    fewer = {name: leaf for name, leaf in params.items() if name not in ("down_1", "up_0", "up_1")}
    fewer["up_0"] = params["up_1"]
    assert relative(apply(short, fewer), apply(SMALL, params)) < 1e-6


def test_final_convolution(params, highest):
    """With an identity kernel it changes nothing; with a shifted one it moves the image."""
    model = replace(SMALL, final_conv=True)
    plain = apply(SMALL, params)
    kernel = jnp.zeros((3, 3, 2, 2), jnp.float32)
    for row, expected in ((1, plain), (0, jnp.pad(plain, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1])):
        conv = {"kernel": kernel.at[row, 1].set(jnp.eye(2)), "bias": jnp.zeros(2)}
        assert relative(apply(model, params | {"conv_out": conv}), expected) < 1e-6


def test_time_mlp(params, highest):
    """dense(silu(dense(sinusoids))) takes the place of the sinusoids: as the label's row, time constant, it is one."""
    model = replace(SMALL, time_mlp=True, num_classes=None)
    dense = lambda i, o: {"kernel": jnp.zeros((i, o), jnp.float32), "bias": jnp.full(o, 0.7, jnp.float32)}
    rest = {name: leaf for name, leaf in params.items() if name != "label"}
    rest["positions"] = params["positions"][1:]
    found = apply(model, rest | {"time_1": dense(16, 64), "time_2": dense(64, 16)}, y=None)
    other = apply(model, rest | {"time_1": dense(16, 64), "time_2": dense(64, 16)}, t=T + 100, y=None)
    np.testing.assert_array_equal(found, other)


def test_bfloat16_is_close_to_float32(params):
    low = apply(replace(SMALL, dtype=jnp.bfloat16), params)
    assert low.dtype == jnp.float32
    assert 1e-4 < relative(low, apply(SMALL, params)) < 2e-2


@pytest.mark.slow
def test_remat_has_the_same_gradient(params, highest):
    def gradient(model):
        return jax.grad(lambda params: jnp.mean(model.apply({"params": params}, images(), T, y=Y) ** 2))

    assert_remat_of(gradient, SMALL, params, SMALL.depth)


@pytest.mark.parametrize(
    ("change", "x_shape", "t", "y", "message"),
    [
        ({}, (4, 4, 1), T, Y, r"x_t must be \[B, H, W, C\], got shape \(4, 4, 1\)"),
        ({}, (2, 4, 4, 1), Y, Y, r"t must be \[B\] float with B = 2, got int32\[2\]"),
        ({}, (2, 4, 4, 1), T, T, r"y must be \[B\] int with B = 2, got float32\[2\]"),
        ({}, (2, 4, 4, 1), T, None, "y goes with num_classes, got y=None and 3"),
        ({"num_classes": None}, (2, 4, 4, 1), T, Y, r"y goes with num_classes, got y=\(2,\) and None"),
        ({}, (2, 4, 5, 1), T, Y, "H and W must be divisible by patch_size 2, got 4 x 5"),
        ({"num_heads": 3}, (2, 4, 4, 1), T, Y, "width 16 is not divisible by num_heads 3"),
        ({"depth": 4}, (2, 4, 4, 1), T, Y, "depth must be odd, got 4"),
    ],
)
def test_errors_while_tracing(change, x_shape, t, y, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(replace(SMALL, **change).init, jax.random.key(0), jnp.zeros(x_shape), t, y=y)
