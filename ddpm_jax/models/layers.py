"""The blocks of the U-Nets: res block, self attention, down- and upsampling.

Images are [B, H, W, C]. `dtype` is that of convolutions and matrix products; parameters, group norm and softmax
are float32 whatever it is.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from ddpm_jax.models.convolution import PRODUCT, conv_general_dilated
from ddpm_jax.names import choose

# Ho et al. initialise with variance scaling throughout. Layers that end a residual branch start near zero, not at
# zero: 1e-10 is their scale.
init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
near_zero_init = nn.initializers.variance_scaling(1e-10, "fan_avg", "uniform")

# The nonlinearities that a res block may have.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "mish": jax.nn.mish,
    "relu": jax.nn.relu,
}

conv3x3 = partial(
    nn.Conv, kernel_size=(3, 3), padding="SAME", kernel_init=init, conv_general_dilated=conv_general_dilated
)


def groups_of(channels: int, num_groups: int | None) -> int:
    """num_groups, or a quarter of the channels, 32 at most, where that is None.

    Raises:
      ValueError: the channels do not divide into them.
    """
    found = min(channels // 4, 32) if num_groups is None else num_groups
    if found < 1 or channels % found:
        raise ValueError(f"{channels} channels do not divide into num_groups {found}")
    return found


class GroupNorm(nn.Module):
    """scale * (x - mean) / sqrt(variance + eps) + bias, mean and variance over a group of C / num_groups channels.

    x is [B, ..., C]. Computed in float32, returned in the dtype of x. num_groups may be None: see groups_of.

    Source: Wu and He 2018 (arXiv:1803.08494), eq. 1; the default eps is that of Ho et al.'s code; a quarter of the
    channels: Song et al. 2020 (arXiv:2011.13456), as in their code.
    """

    num_groups: int | None
    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, channels = x.shape[0], x.shape[-1]
        num_groups = groups_of(channels, self.num_groups)
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)[None]
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)[None, None]
        size = channels // num_groups

        def mean(y: jax.Array) -> jax.Array:
            # Over pixels first, which leaves the channels contiguous: on a CPU this is 2 to 3 times faster than
            # one reduction over [HW, C / G]. Two passes, because E[x^2] - E[x]^2 loses digits.
            groups = y.mean(axis=1).reshape(batch, num_groups, size).mean(axis=-1)
            return jnp.repeat(groups, size, axis=-1)

        y = x.reshape(batch, -1, channels).astype(jnp.float32)
        y = y - mean(y)[:, None]
        y = y * (lax.rsqrt(mean(y * y) + self.eps) * scale)[:, None] + bias
        return y.reshape(x.shape).astype(x.dtype)


class Dense(nn.Dense):
    """x @ kernel + bias over the last axis of x [..., C]."""

    kernel_init: nn.initializers.Initializer = init

    def __call__(self, inputs: jax.Array) -> jax.Array:
        # As a matrix: the gradient of the kernel is then one product. With more axes XLA transposes x first.
        y = super().__call__(inputs.reshape(-1, inputs.shape[-1]))
        return checkpoint_name(y, PRODUCT).reshape(*inputs.shape[:-1], self.features)


def dropout(x: jax.Array, keys: jax.Array, rate: float) -> jax.Array:
    """x * mask / (1 - rate), mask ~ Bernoulli(1 - rate), the mask of example i from keys[i] alone.

    Source: Srivastava et al. 2014 (JMLR 15), section 10 (inverted form).

    Args:
      x: [B, ...].
      keys: [B] random keys.
      rate: in [0, 1).
    """
    mask = jax.vmap(lambda key: jax.random.bernoulli(key, jnp.float32(1 - rate), x.shape[1:]))(keys)
    return jnp.where(mask, x / (1 - rate), 0)


class ResBlock(nn.Module):
    """shortcut(x) + conv(dropout(silu(norm(conv(silu(norm(x))) + dense(silu(temb)))))).

    With scale_shift the embedding enters after the second norm, norm(h) * (1 + scale) + shift, where
    (scale, shift) = dense(silu(temb)). With resample, x and silu(norm(x)) are resampled before they go on.
    Without temb there is no time in the block. activation is in the place of silu, and the sum is divided by scale.
    num_groups_in is norm_1's if set. The shortcut is a dense layer where the width changes, with project always.

    Source: Ho et al. 2020 (arXiv:2006.11239), appendix B; scale_shift: Nichol and Dhariwal 2021 (arXiv:2102.09672),
    appendix A; resample: Dhariwal and Nichol 2021 (arXiv:2105.05233), section 3, as in BigGAN.
    """

    channels: int
    num_groups: int | None
    dropout: float
    dtype: Dtype
    eps: float = 1e-6
    scale_shift: bool = False
    resample: Callable[[jax.Array], jax.Array] | None = None
    activation: str = "silu"
    scale: float = 1.0
    num_groups_in: int | None = None
    project: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array | None, dropout_keys: jax.Array | None) -> jax.Array:
        activation = choose("activation", self.activation, ACTIVATIONS)
        groups = self.num_groups if self.num_groups_in is None else self.num_groups_in
        h = activation(GroupNorm(groups, self.eps, name="norm_1")(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = conv3x3(self.channels, dtype=self.dtype, name="conv_1")(h)
        norm = GroupNorm(self.num_groups, self.eps, name="norm_2")
        if temb is None:
            h = norm(h)
        else:
            width = 2 * self.channels if self.scale_shift else self.channels
            temb = Dense(width, dtype=self.dtype, name="time_projection")(activation(temb))[:, None, None]
            if self.scale_shift:
                # In float32, rounded once: in bfloat16 this line alone would add a quarter to the network's error.
                scale, shift = jnp.split(temb.astype(jnp.float32), 2, axis=-1)
                h = (norm(h.astype(jnp.float32)) * (1 + scale) + shift).astype(h.dtype)
            else:
                h = norm(h + temb)
        h = activation(h)
        if dropout_keys is not None:
            h = dropout(h, dropout_keys, self.dropout)
        h = conv3x3(self.channels, dtype=self.dtype, kernel_init=near_zero_init, name="conv_2")(h)
        if self.project or x.shape[-1] != self.channels:
            x = Dense(self.channels, dtype=self.dtype, name="shortcut")(x)
        return divided(x + h, self.scale)


def divided(h: jax.Array, scale: float) -> jax.Array:
    """h / scale; h itself where that is 1."""
    return h if scale == 1 else h / scale


def attend(q: jax.Array, k: jax.Array, v: jax.Array, num_heads: int, bias: jax.Array | None = None) -> jax.Array:
    """softmax(q_h k_h^T / sqrt(D) + bias) v_h for each head h, the heads side by side in the last axis.

    Source: Vaswani et al. 2017 (arXiv:1706.03762), eq. 1 and section 3.2.2.

    Args:
      q: [B, N, num_heads D].
      k, v: [B, M, num_heads D].
      bias: [B, M] float32 of the keys, the same for every query and head; None for 0.

    Returns:
      [B, N, num_heads D] in the dtype of q.

    Raises:
      ValueError: the last axis does not divide into num_heads. Raised while tracing.
    """
    if q.shape[-1] % num_heads:
        raise ValueError(f"width {q.shape[-1]} is not divisible by num_heads {num_heads}")
    # Heads become part of the batch: one head then costs, and rounds, as if heads did not exist.
    q, k, v = (jnp.moveaxis(x.reshape(*x.shape[:2], num_heads, -1), 2, 1) for x in (q, k, v))
    batch, width = q.shape[:2], q.shape[-1]
    q, k, v = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
    logits = jnp.einsum("bqd,bkd->bqk", q, k).astype(jnp.float32) * width**-0.5
    if bias is not None:
        logits = logits + jnp.repeat(bias, num_heads, axis=0)[:, None]
    y = jnp.einsum("bqk,bkd->bqd", nn.softmax(logits).astype(q.dtype), v).reshape(*batch, -1, width)
    return jnp.moveaxis(y, 1, 2).reshape(batch[0], -1, num_heads * width)


class Attention(nn.Module):
    """x + out(attention(query(h), key(h), value(h))) over the H * W positions, h = norm(x), or x without a norm.

    The sum is divided by scale.

    Source: Vaswani et al. 2017 (arXiv:1706.03762), eq. 1, placed as in Ho et al. 2020 (arXiv:2006.11239), appendix B.
    """

    num_groups: int | None
    dtype: Dtype
    eps: float = 1e-6
    num_heads: int = 1
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        h = x if self.num_groups is None else GroupNorm(self.num_groups, self.eps, name="norm")(x)
        h = h.reshape(batch, height * width, channels)
        q = Dense(channels, dtype=self.dtype, name="query")(h)
        k = Dense(channels, dtype=self.dtype, name="key")(h)
        v = Dense(channels, dtype=self.dtype, name="value")(h)
        h = attend(q, k, v, self.num_heads)
        h = Dense(channels, dtype=self.dtype, kernel_init=near_zero_init, name="out")(h)
        return divided(x + h.reshape(x.shape), self.scale)


def upsample_nearest(x: jax.Array) -> jax.Array:
    """y[:, i, j] = x[:, i // 2, j // 2], of size [B, 2 H, 2 W, C]."""
    batch, height, width, channels = x.shape
    y = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return y.reshape(batch, 2 * height, 2 * width, channels)


def average_pool(x: jax.Array) -> jax.Array:
    """y[:, i, j] = mean of x[:, 2 i : 2 i + 2, 2 j : 2 j + 2], of size [B, H / 2, W / 2, C]."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
