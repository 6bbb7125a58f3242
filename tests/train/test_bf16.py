"""Training in bfloat16 beside training in float32: the same draws, the same state, losses within a bound."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.typing import Dtype

from ddpm_jax.config.run import OptimizerConfig
from ddpm_jax.models.layers import Dense, ResBlock, conv3x3
from ddpm_jax.train import state
from tests.train.test_mesh import run
from tests.train.test_step import diffusion, small_unet

ADAM = OptimizerConfig(learning_rate=5e-3, warmup_steps=5, decay_steps=None)
ON_MESH = {"data": 2, "fsdp": 2}


pytestmark = pytest.mark.usefixtures("optax_promotes")


class OneBlock(nn.Module):
    """A res block between two convolutions: all that a U-Net computes in `dtype`, but attention."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_t, t, *, train=False, dropout_keys=None):
        temb = Dense(16, dtype=self.dtype)(jnp.sin(t[:, None] * 10.0 ** -jnp.arange(4.0)[None]))
        h = ResBlock(8, 4, 0.0, self.dtype)(conv3x3(8, dtype=self.dtype)(x_t), temb, None)
        return conv3x3(x_t.shape[-1])(nn.silu(h.astype(jnp.float32)))


def trained(model, sizes, num_steps):
    return run(diffusion(model, state.make_optimizer(ADAM)), sizes, num_steps)


def distance(a, b):
    """Of all leaves together, in units of the size of b."""
    leaves = list(zip(*map(jax.tree.leaves, (a, b)), strict=True))
    return np.sqrt(sum(np.sum((x - y) ** 2) for x, y in leaves) / sum(np.sum(y**2) for _, y in leaves))


def assert_follows(low, exact, *, loss, params):
    """Every loss within this share of the exact one, the parameters in the end within this share of their way."""
    (states, metrics), (states_exact, metrics_exact) = low, exact
    losses, losses_exact = ([values["loss"] for values in of] for of in (metrics, metrics_exact))
    errors = np.abs(np.array(losses) / losses_exact - 1)
    assert 1e-5 < errors.max() < loss  # and not float32 in disguise
    way = distance(states_exact[-1].params, states_exact[0].params)
    assert distance(states[-1].params, states_exact[-1].params) < params * way
    assert np.mean(losses[-8:]) < 0.8 * losses[0]  # it did learn


def assert_float32(train_state):
    floats = [leaf for leaf in jax.tree.leaves(train_state) if not np.issubdtype(leaf.dtype, np.integer)]
    assert len(floats) > 20 and all(leaf.dtype == np.float32 for leaf in floats)


@pytest.fixture(scope="module")
def exact():
    with jax.numpy_dtype_promotion("standard"):
        return trained(OneBlock(), {}, 40)


@pytest.mark.parametrize("sizes", [{}, ON_MESH], ids=["pmap", "mesh"])
def test_training_in_bf16_follows_float32(sizes, exact):
    """bfloat16 rounds by up to 2^-9 = 0.002. Measured: losses within 0.001, parameters within 0.008 of their way."""
    low = trained(OneBlock(jnp.bfloat16), sizes, 40)
    assert_float32(low[0][-1])
    assert_follows(low, exact, loss=0.004, params=0.03)


@pytest.mark.slow
def test_a_unet_in_bf16_follows_float32():
    """More layers in a row, and dropout. Measured: losses within 0.007, parameters within 0.06 of their way."""
    exact = trained(small_unet(dropout=0.1), {}, 40)
    for sizes in ({}, ON_MESH):
        low = trained(small_unet(dropout=0.1, dtype=jnp.bfloat16), sizes, 40)
        assert_float32(low[0][-1])
        assert_follows(low, exact, loss=0.02, params=0.2)
