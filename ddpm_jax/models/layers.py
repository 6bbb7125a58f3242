"""The blocks of the DDPM U-Net: res block, self attention, down- and upsampling.

Images are [B, H, W, C]. `dtype` is that of convolutions and matrix products; parameters, group norm and softmax
are float32 whatever it is.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax import lax

# Ho et al. initialise with variance scaling throughout. Layers that end a residual branch start near zero, not at
# zero: 1e-10 is their scale.
init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
near_zero_init = nn.initializers.variance_scaling(1e-10, "fan_avg", "uniform")

conv3x3 = partial(nn.Conv, kernel_size=(3, 3), padding="SAME", kernel_init=init)


class GroupNorm(nn.Module):
    """scale * (x - mean) / sqrt(variance + 1e-6) + bias, mean and variance over a group of C / num_groups channels.

    Computed in float32, returned in the dtype of x.

    Source: Wu and He 2018 (arXiv:1803.08494), eq. 1; the epsilon is that of Ho et al.'s code.
    """

    num_groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)[None]
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)[None, None]
        size = channels // self.num_groups

        def mean(y: jax.Array) -> jax.Array:
            # Over pixels first, which leaves the channels contiguous: on a CPU this is 2 to 3 times faster than
            # one reduction over [HW, C / G]. Two passes, because E[x^2] - E[x]^2 loses digits.
            groups = y.mean(axis=1).reshape(batch, self.num_groups, size).mean(axis=-1)
            return jnp.repeat(groups, size, axis=-1)

        y = x.reshape(batch, height * width, channels).astype(jnp.float32)
        y = y - mean(y)[:, None]
        y = y * (lax.rsqrt(mean(y * y) + 1e-6) * scale)[:, None] + bias
        return y.reshape(x.shape).astype(x.dtype)


class Dense(nn.Dense):
    """x @ kernel + bias over the last axis of x [..., C]."""

    kernel_init: nn.initializers.Initializer = init

    def __call__(self, inputs: jax.Array) -> jax.Array:
        # As a matrix: the gradient of the kernel is then one product. With more axes XLA transposes x first.
        y = super().__call__(inputs.reshape(-1, inputs.shape[-1]))
        return y.reshape(*inputs.shape[:-1], self.features)


def dropout(x: jax.Array, keys: jax.Array, rate: float) -> jax.Array:
    """x * mask / (1 - rate), mask ~ Bernoulli(1 - rate), the mask of example i from keys[i] alone.

    Source: Srivastava et al. 2014 (JMLR 15), section 10 (inverted form).

    Args:
      x: [B, ...].
      keys: [B] random keys.
      rate: in [0, 1).
    """
    mask = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(mask, x / (1 - rate), 0)


class ResBlock(nn.Module):
    """shortcut(x) + conv(dropout(silu(norm(conv(silu(norm(x))) + dense(silu(temb)))))).

    Source: Ho et al. 2020 (arXiv:2006.11239), appendix B.
    """

    channels: int
    num_groups: int
    dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        h = nn.silu(GroupNorm(self.num_groups, name="norm_1")(x))
        h = conv3x3(self.channels, dtype=self.dtype, name="conv_1")(h)
        h = h + Dense(self.channels, dtype=self.dtype, name="time_projection")(nn.silu(temb))[:, None, None]
        h = nn.silu(GroupNorm(self.num_groups, name="norm_2")(h))
        if dropout_keys is not None:
            h = dropout(h, dropout_keys, self.dropout)
        h = conv3x3(self.channels, dtype=self.dtype, kernel_init=near_zero_init, name="conv_2")(h)
        if x.shape[-1] != self.channels:
            x = Dense(self.channels, dtype=self.dtype, name="shortcut")(x)
        return x + h


class Attention(nn.Module):
    """x + out(softmax(q k^T / sqrt(C)) v) over the H * W positions, one head; q, k, v from norm(x).

    Source: Vaswani et al. 2017 (arXiv:1706.03762), eq. 1, placed as in Ho et al. 2020, appendix B.
    """

    num_groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        h = GroupNorm(self.num_groups, name="norm")(x).reshape(batch, height * width, channels)
        q = Dense(channels, dtype=self.dtype, name="query")(h)
        k = Dense(channels, dtype=self.dtype, name="key")(h)
        v = Dense(channels, dtype=self.dtype, name="value")(h)
        logits = jnp.einsum("bqc,bkc->bqk", q, k).astype(jnp.float32) * channels**-0.5
        weights = nn.softmax(logits).astype(self.dtype)
        h = jnp.einsum("bqk,bkc->bqc", weights, v)
        h = Dense(channels, dtype=self.dtype, kernel_init=near_zero_init, name="out")(h)
        return x + h.reshape(x.shape)


def upsample_nearest(x: jax.Array) -> jax.Array:
    """y[:, i, j] = x[:, i // 2, j // 2], of size [B, 2 H, 2 W, C]."""
    batch, height, width, channels = x.shape
    y = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return y.reshape(batch, 2 * height, 2 * width, channels)
