"""The patch discriminator: of every patch of an image, how much it looks like one of the data.

Images are [B, H, W, C]. The last map has one logit for each patch, and patches overlap.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ddpm_jax.models.layers import GroupNorm

NormName = Literal["group", "batch", "actnorm"]
GROUPS = 8


class BatchNorm(nn.Module):
    """scale (x - mean) / sqrt(variance + 1e-5) + bias, moments over the batch and its pixels, or their running ones.

    The running moments, in the collection batch_stats, are 0.9 of the old and 0.1 of the batch's, its variance
    unbiased; as PyTorch's.

    Source: Ioffe and Szegedy 2015 (arXiv:1502.03167), algorithm 1.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", near_one, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_variance = self.variable("batch_stats", "variance", jnp.ones, (channels,))
        mean, variance = running_mean.value, running_variance.value
        if train:
            mean, count = x.mean(axis=(0, 1, 2)), x.size // channels
            variance = ((x - wide(mean)) ** 2).mean(axis=(0, 1, 2))
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                running_mean.value = 0.9 * running_mean.value + 0.1 * mean
                running_variance.value = 0.9 * running_variance.value + 0.1 * variance * count / (count - 1)
        return (x - wide(mean)) * wide(lax.rsqrt(variance + 1e-5) * scale) + wide(bias)


class ActNorm(nn.Module):
    """scale (x + loc), which begin so that the first batch, with which parameters are made, has mean 0 and deviation 1.

    Source: Kingma and Dhariwal 2018 (arXiv:1807.03039), section 3.1.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        loc = self.param("loc", lambda key: -x.mean(axis=(0, 1, 2)))
        scale = self.param("scale", lambda key: 1 / (x.std(axis=(0, 1, 2), ddof=1) + 1e-6))
        return wide(scale) * (x + wide(loc))


def near_one(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """N(1, 0.02^2)."""
    return 1 + 0.02 * jax.random.normal(key, shape)


def wide(row: jax.Array) -> jax.Array:
    """[C] as [1, 1, 1, C]."""
    return row[None, None, None]


def least_side(num_layers: int) -> int:
    """Of images: what leaves the last map at least 2 x 2."""
    return 4 * 2**num_layers


class PatchDiscriminator(nn.Module):
    """images [B, H, W, C] -> logits [B, h, w, 1], large for what looks real.

    Convolutions of 4 x 4: num_layers of stride 2 and two of stride 1, so that a patch is 16, 34, 70 or 142 pixels wide
    for 1 to 4 layers. The first and the last have no norm.

    norm "batch" is that of the papers and of latent-diffusion's weights: there what it says of an image depends on the
    others in the batch. "group" has 8 groups, each of one image, and "actnorm" is a learned affine map.

    Source: Isola et al. 2016 (arXiv:1611.07004), section 3.2.2 and appendix 6.1.2.

    Attributes:
      channels: width after the first convolution; it doubles with each layer, to 8 times as many.
      num_layers: of stride 2.
      norm: between the convolutions.
    """

    channels: int = 64
    num_layers: int = 3
    norm: NormName = "group"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """train: whether batch norms take the batch's moments; apply with mutable="batch_stats" then."""
        least = least_side(self.num_layers)
        if x.ndim != 4 or min(x.shape[1:3]) < least:
            raise ValueError(
                f"a discriminator of num_layers {self.num_layers} needs images [B, H, W, C] of at least {least} x "
                f"{least}, got shape {x.shape}"
            )
        h = nn.leaky_relu(self._conv(0, self.channels, 2)(x), 0.2)
        for layer in range(1, self.num_layers + 1):
            width = self.channels * min(2**layer, 8)
            h = self._conv(layer, width, 1 if layer == self.num_layers else 2, bias=self.norm == "actnorm")(h)
            if self.norm == "group":
                h = GroupNorm(min(GROUPS, width // 2), 1e-5, name=f"norm_{layer}")(h)
            else:
                kind = BatchNorm if self.norm == "batch" else ActNorm
                h = kind(name=f"norm_{layer}")(h, train)
            h = nn.leaky_relu(h, 0.2)
        return self._conv(self.num_layers + 1, 1, 1)(h)

    def _conv(self, layer: int, width: int, strides: int, bias: bool = True) -> nn.Conv:
        return nn.Conv(
            width, (4, 4), strides=strides, padding=1, use_bias=bias, name=f"conv_{layer}",
            kernel_init=nn.initializers.normal(0.02),
        )  # fmt: skip
