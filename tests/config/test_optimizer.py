"""What the settings of the optimizer make of one parameter, against the formulas."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.config.run import OptimizerConfig
from ddpm_jax.train import state

pytestmark = pytest.mark.usefixtures("optax_promotes")


def rates(steps, **settings):
    """Of these steps: of Adam's first step with the same gradient, always 1 long."""
    rate = state.make_rate(OptimizerConfig(**settings), 0.5)
    return [float(rate(step)) if callable(rate) else float(rate) for step in steps]


def test_warm_up_and_decays():
    half = 0.1 + 0.4 * (1 + math.cos(math.pi * 0.25)) / 2
    common = {"warmup_steps": 4, "decay_steps": 12, "end_rate": 0.1}
    np.testing.assert_allclose(rates((0, 2, 4, 6, 12, 20), **common), [0, 0.25, 0.5, half, 0.1, 0.1], rtol=1e-6)
    linear = rates((0, 2, 4, 6, 12, 20), decay="linear", **common)
    np.testing.assert_allclose(linear, [0, 0.25, 0.5, 0.4, 0.1, 0.1], rtol=1e-6)
    np.testing.assert_allclose(rates((0, 3), decay="linear", warmup_steps=0, decay_steps=6), [0.5, 0.25])
    np.testing.assert_allclose(rates((0, 2, 4, 99), warmup_steps=4, decay_steps=None), [0, 0.25, 0.5, 0.5])
    assert rates((0, 99), warmup_steps=0, decay_steps=None) == [0.5, 0.5]


def test_weight_decay_is_apart_from_the_gradient():
    """theta <- theta - rate (sign-like step + decay theta): without a gradient Adam moves nothing, AdamW to 0."""
    given = {"learning_rate": 0.5, "warmup_steps": 0, "decay_steps": None}
    params, nothing = {"w": jnp.array([2.0, -4.0])}, {"w": jnp.zeros(2)}
    for name, decay, expected in (("adam", None, 0.0), ("adamw", None, 1e-4), ("adamw", 0.1, 0.1), ("adamw", 0.0, 0.0)):
        optimizer = state.make_optimizer(OptimizerConfig(name=name, weight_decay=decay, **given))
        updates, _ = optimizer.update(nothing, optimizer.init(params), params)
        np.testing.assert_allclose(updates["w"], -0.5 * expected * params["w"], rtol=1e-6)
