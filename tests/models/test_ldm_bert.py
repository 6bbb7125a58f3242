"""Latent diffusion's text encoder: who knows of whom, the width of its heads, errors. Its numbers: tests/interop."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from ddpm_jax.models import LDMBert

SMALL = LDMBert(width=12, depth=1, num_heads=3, head_dim=5, hidden=20, vocabulary=20, num_positions=8)
TOKENS = jnp.array([[18, 3, 7, 19, 0, 0], [18, 5, 5, 2, 19, 19]], jnp.int32)


@pytest.fixture(scope="module")
def params():
    """Far from the start, so that tokens attend to some more than to others, and no bias is 0."""
    random, start = np.random.RandomState(0), jax.eval_shape(SMALL.init, jax.random.key(0), TOKENS)["params"]
    return jax.tree.map(lambda leaf: random.standard_normal(leaf.shape).astype(np.float32), start)


def norm(x, layer):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * layer["scale"] + layer["bias"]


def test_one_block_in_float64(params):
    """Its definition, one head and one token after the other."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    block = p["block_0"]
    h = p["token_embedding"]["embedding"][np.asarray(TOKENS)] + p["positions"]["embedding"][: TOKENS.shape[1]]
    attention, inner = block["attention"], norm(h, block["norm_1"])
    q, k, v = (inner @ attention[name]["kernel"] for name in ("query", "key", "value"))
    mixed = np.zeros_like(q)
    for head in range(3):
        of_head = slice(5 * head, 5 * head + 5)
        for b, i in np.ndindex(TOKENS.shape):
            weights = np.exp(k[b, :, of_head] @ q[b, i, of_head] / np.sqrt(5))
            mixed[b, i, of_head] = weights @ v[b, :, of_head] / weights.sum()
    h = h + mixed @ attention["out"]["kernel"] + attention["out"]["bias"]
    hidden = norm(h, block["norm_2"]) @ block["mlp"]["in"]["kernel"] + block["mlp"]["in"]["bias"]
    gelu = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
    h = h + gelu @ block["mlp"]["out"]["kernel"] + block["mlp"]["out"]["bias"]
    found = SMALL.apply({"params": params}, TOKENS)
    np.testing.assert_allclose(found, norm(h, p["norm_out"]), rtol=1e-5, atol=1e-5)
    assert found.dtype == jnp.float32


def test_every_token_knows_of_every_other(params):
    before, after = (SMALL.apply({"params": params}, tokens) for tokens in (TOKENS, TOKENS.at[:, -1].set(11)))
    assert np.abs(before - after).max(axis=(0, 2)).min() > 1e-3


def test_bfloat16_is_close_to_float32(params):
    exact, found = (replace(SMALL, dtype=dtype).apply({"params": params}, TOKENS) for dtype in ("float32", "bfloat16"))
    assert found.dtype == jnp.float32
    assert 1e-4 < np.abs(found - exact).max() / np.abs(exact).max() < 5e-2


@pytest.mark.parametrize(
    ("changes", "tokens", "message"),
    [
        ({}, jnp.zeros((2, 3)), r"tokens must be \[B, N\] int, got float32\[2, 3\]"),
        ({}, jnp.zeros(3, jnp.int32), r"tokens must be \[B, N\] int, got int32\[3\]"),
        ({}, jnp.zeros((2, 9), jnp.int32), "N must lie in 1 .. num_positions = 8, got 9 tokens"),
        ({"depth": 0}, TOKENS, "depth must be at least 1, got 0"),
        ({"activation": "gelu_tanh"}, TOKENS, "unknown activation 'gelu_tanh'; did you mean"),
    ],
)
def test_errors(changes, tokens, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(replace(SMALL, **changes).init, jax.random.key(0), tokens)
