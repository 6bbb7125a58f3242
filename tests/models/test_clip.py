"""CLIP's text encoder: what a token knows of the others, what is pooled, errors. Its numbers: tests/interop."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from ddpm_jax.models import CLIPText
from ddpm_jax.models.clip import quick_gelu
from tests.helpers import relative

SMALL = CLIPText(width=12, depth=2, num_heads=3, hidden=24, vocabulary=20, num_positions=8)
TOKENS = jnp.array([[18, 3, 7, 19, 0, 0], [18, 5, 5, 2, 19, 19]], jnp.int32)


@pytest.fixture(scope="module")
def params():
    """Far from the start, so that tokens attend to some more than to others."""
    return jax.tree.map(lambda leaf: 20 * leaf, jax.jit(SMALL.init)(jax.random.key(0), TOKENS)["params"])


@pytest.fixture(scope="module")
def apply(params):
    return partial(jax.jit(SMALL.apply), {"params": params})


def test_quick_gelu_in_float64(x64):
    x = np.linspace(-8, 8, 2001)
    found = quick_gelu(jnp.asarray(x))
    np.testing.assert_allclose(found, x / (1 + np.exp(-1.702 * x)), atol=1e-14)
    assert 0.02 < np.abs(found - x * norm.cdf(x)).max() < 0.021


@pytest.mark.parametrize("length", [1, 3, 5])
def test_a_token_knows_of_those_before_it_only(apply, length):
    whole, part = apply(TOKENS), apply(TOKENS[:, :length])
    np.testing.assert_allclose(part.last_hidden, whole.last_hidden[:, :length], atol=1e-5)
    for short, long in zip(part.hidden, whole.hidden, strict=True):
        np.testing.assert_allclose(short, long[:, :length], rtol=1e-5, atol=1e-4)
    other = apply(TOKENS.at[:, length - 1].set(11)).last_hidden
    assert np.abs(other - whole.last_hidden)[:, length - 1 :].max(axis=(0, 2)).min() > 1e-2


def test_a_masked_token_is_known_to_none(apply):
    """Without a token nothing depends on which it was, but at its own place."""
    mask = jnp.ones(TOKENS.shape, bool).at[:, 2].set(False)
    found, other = apply(TOKENS, mask).last_hidden, apply(TOKENS.at[:, 2].set(11), mask).last_hidden
    np.testing.assert_array_equal(np.delete(found, 2, axis=1), np.delete(other, 2, axis=1))
    assert np.abs(found - other)[:, 2].max() > 1e-2
    assert np.abs(found - apply(TOKENS).last_hidden)[:, 3:].max() > 1e-2


def test_nothing_to_attend_to_is_nan(apply):
    mask = jnp.ones(TOKENS.shape, bool).at[0, 0].set(False)
    finite = np.isfinite(apply(TOKENS, mask).last_hidden).all(axis=(1, 2))
    assert finite.tolist() == [False, True]


@pytest.mark.parametrize(("eos_token", "places"), [(None, (3, 4)), (19, (3, 4)), (5, (0, 1))])
def test_pooled(params, apply, eos_token, places):
    """At the first end token: the largest, or the one that the settings name."""
    pooled = replace(SMALL, eos_token=eos_token).apply({"params": params}, TOKENS).pooled
    expected = apply(TOKENS).last_hidden
    expected = [expected[i, place] for i, place in enumerate(places)]
    assert relative(pooled, expected) < 1e-6  # op by op, and as one program


@pytest.mark.parametrize(
    ("changes", "tokens", "mask", "message"),
    [
        ({}, jnp.zeros((2, 3)), None, r"tokens must be \[B, N\] int, got float32\[2, 3\]"),
        ({}, jnp.zeros(3, jnp.int32), None, r"tokens must be \[B, N\] int, got int32\[3\]"),
        ({}, jnp.zeros((2, 9), jnp.int32), None, "N must lie in 1 .. num_positions = 8, got 9 tokens"),
        ({}, jnp.zeros((2, 0), jnp.int32), None, "num_positions = 8, got 0 tokens"),
        ({}, TOKENS, jnp.ones((2, 5), bool), r"mask must be bool \[2, 6\], got bool\[2, 5\]"),
        ({}, TOKENS, jnp.ones((2, 6)), r"mask must be bool \[2, 6\], got float32\[2, 6\]"),
        ({"num_heads": 5}, TOKENS, None, "width 12 is not divisible by num_heads 5"),
        ({"depth": 0}, TOKENS, None, "depth must be at least 1, got 0"),
        ({"activation": "gelu_tanh"}, TOKENS, None, "unknown activation 'gelu_tanh'; did you mean"),
    ],
)
def test_errors(changes, tokens, mask, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(replace(SMALL, **changes).init, jax.random.key(0), tokens, mask)
