"""The halves of an autoencoder as one layer each: quick to compile, for what does not depend on what is inside them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from ddpm_jax.models import autoencoder


class SmallEncoder(autoencoder.Encoder):
    """One convolution that covers f x f pixels."""

    @nn.compact
    def __call__(self, x):
        f = 2 ** (len(self.channel_multipliers) - 1)
        return nn.Conv(self.out_channels, (f, f), strides=f, padding="VALID", name="conv_out")(x)


class SmallDecoder(autoencoder.Decoder):
    """The nearest latents, tanh of them, one convolution."""

    @nn.compact
    def __call__(self, z):
        f = 2 ** (len(self.channel_multipliers) - 1)
        z = jnp.tanh(jnp.repeat(jnp.repeat(z, f, axis=1), f, axis=2))
        return nn.Conv(self.out_channels, (3, 3), name="conv_out")(z)


@pytest.fixture(scope="module")
def small_halves():
    """Every autoencoder that is made has these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoder, "Encoder", SmallEncoder)
        patch.setattr(autoencoder, "Decoder", SmallDecoder)
        yield


def moved(tree, by=0.3):
    """Parameters none of which is as it starts."""
    return jax.tree.map(lambda leaf: leaf + by * jax.random.normal(jax.random.key(leaf.size), leaf.shape), tree)
