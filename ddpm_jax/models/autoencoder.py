"""The autoencoder of latent diffusion: images to a diagonal Gaussian over latents, latents to images.

Images are [B, H, W, C], scaled to [-1, 1]; latents [B, H / f, W / f, D] with f = 2^(levels - 1). Level l works at
H / 2^l, as in the U-Net, and has its names: down_l, up_l. There is no time in these networks, and no dropout.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from ddpm_jax.models.layers import Attention, Dense, GroupNorm, ResBlock, conv3x3, upsample_nearest


class DiagonalGaussian(NamedTuple):
    """N(mean, diag(exp(log_variance))) over the latents [B, h, w, D] of one image each.

    Source: Kingma and Welling 2013 (arXiv:1312.6114), section 3; appendix B for the divergence.
    """

    mean: jax.Array
    log_variance: jax.Array

    def mode(self) -> jax.Array:
        """argmax p(z) = mean."""
        return self.mean

    def sample(self, eps: jax.Array) -> jax.Array:
        """mean + exp(log_variance / 2) eps, for eps ~ N(0, I) like mean."""
        return self.mean + jnp.exp(0.5 * self.log_variance) * eps

    def kl(self, other: "DiagonalGaussian | None" = None) -> jax.Array:
        """KL(N(mean, diag(exp(log_variance))) || other), in nats per image, [B]: a sum over the latents, not a mean.

        Args:
          other: distributions of the same shape; N(0, I) by default.
        """
        if other is None:
            terms = self.mean**2 + jnp.exp(self.log_variance) - 1 - self.log_variance
        else:
            ratio = self.log_variance - other.log_variance
            terms = (self.mean - other.mean) ** 2 * jnp.exp(-other.log_variance) + jnp.exp(ratio) - 1 - ratio
        return 0.5 * terms.sum(axis=(1, 2, 3))

    def nll(self, z: jax.Array) -> jax.Array:
        """-log p(z), in nats per image: [B]."""
        terms = np.log(2 * np.pi) + self.log_variance + (z - self.mean) ** 2 * jnp.exp(-self.log_variance)
        return 0.5 * terms.sum(axis=(1, 2, 3))


class Encoder(nn.Module):
    """images [B, H, W, C] -> [B, H / f, W / f, out_channels].

    Source: Esser et al. 2020 (arXiv:2012.09841), appendix, table 7, as used by Rombach et al. 2021 (arXiv:2112.10752).

    Attributes:
      channels: width at level 0.
      channel_multipliers: width of each level in units of `channels`.
      num_res_blocks: res blocks per level.
      attention_levels: levels at which every res block is followed by self attention; there is one in the middle in
        any case.
      out_channels: channels of the output.
      num_groups: groups of every group norm.
      dtype: of convolutions and matrix products. Parameters, norms, softmax, the last convolution and the output are
        float32.
    """

    channels: int
    channel_multipliers: Sequence[int]
    num_res_blocks: int
    attention_levels: Sequence[int]
    out_channels: int
    num_groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = conv3x3(self.channels, dtype=self.dtype, name="conv_in")(x)
        for level, multiplier in enumerate(self.channel_multipliers):
            for i in range(self.num_res_blocks):
                h = _res(self, multiplier, f"down_{level}_res_{i}")(h, None, None)
                if level in self.attention_levels:
                    h = Attention(self.num_groups, self.dtype, name=f"down_{level}_attention_{i}")(h)
            if level != len(self.channel_multipliers) - 1:
                # "SAME" pads an even image at the bottom and right only, which is what the published code does.
                h = conv3x3(h.shape[-1], strides=2, dtype=self.dtype, name=f"down_{level}_downsample")(h)
        return _out(self, _middle(self, h))


class Decoder(nn.Module):
    """latents [B, h, w, D] -> images [B, f h, f w, out_channels]; one res block more per level than the Encoder.

    Source: Esser et al. 2020 (arXiv:2012.09841), appendix, table 7, as used by Rombach et al. 2021 (arXiv:2112.10752).

    Attributes: those of Encoder.
    """

    channels: int
    channel_multipliers: Sequence[int]
    num_res_blocks: int
    attention_levels: Sequence[int]
    out_channels: int
    num_groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        h = conv3x3(self.channels * self.channel_multipliers[-1], dtype=self.dtype, name="conv_in")(z)
        h = _middle(self, h)
        for level, multiplier in reversed(list(enumerate(self.channel_multipliers))):
            for i in range(self.num_res_blocks + 1):
                h = _res(self, multiplier, f"up_{level}_res_{i}")(h, None, None)
                if level in self.attention_levels:
                    h = Attention(self.num_groups, self.dtype, name=f"up_{level}_attention_{i}")(h)
            if level != 0:
                h = conv3x3(h.shape[-1], dtype=self.dtype, name=f"up_{level}_upsample")(upsample_nearest(h))
        return _out(self, h)


def _res(half: Encoder | Decoder, multiplier: int, name: str) -> ResBlock:
    return ResBlock(half.channels * multiplier, half.num_groups, dropout=0.0, dtype=half.dtype, name=name)


def _middle(half: Encoder | Decoder, h: jax.Array) -> jax.Array:
    multiplier = half.channel_multipliers[-1]
    h = _res(half, multiplier, "mid_res_0")(h, None, None)
    h = Attention(half.num_groups, half.dtype, name="mid_attention")(h)
    return _res(half, multiplier, "mid_res_1")(h, None, None)


def _out(half: Encoder | Decoder, h: jax.Array) -> jax.Array:
    h = nn.silu(GroupNorm(half.num_groups, name="norm_out")(h.astype(jnp.float32)))
    return conv3x3(half.out_channels, dtype=jnp.float32, name="conv_out")(h)


class Autoencoder(nn.Module):
    """What AutoencoderKL and VQModel have in common: encoder, decoder, and a 1x1 convolution on each side of z.

    Attributes:
      channels: width at level 0.
      channel_multipliers: width of each level in units of `channels`; one level more than there are halvings.
      num_res_blocks: res blocks per level of the encoder; one more in the decoder.
      attention_levels: levels at which every res block is followed by self attention.
      latent_channels: channels of the latents.
      z_channels: channels between the encoder and its 1x1 convolution, and between the other and the decoder.
      out_channels: channels of the images.
      num_groups: groups of every group norm.
      dtype: of convolutions and matrix products. Parameters, norms, softmax, the last convolution of either half and
        the outputs are float32.
    """

    channels: int = 128
    channel_multipliers: Sequence[int] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_levels: Sequence[int] = ()
    latent_channels: int = 4
    z_channels: int = 4
    out_channels: int = 3
    num_groups: int = 32
    dtype: Dtype = jnp.float32

    # The encoder's output in units of latents: mean and log variance, or the latents themselves.
    moments = 1

    def setup(self) -> None:
        common = {
            "channels": self.channels,
            "channel_multipliers": self.channel_multipliers,
            "num_res_blocks": self.num_res_blocks,
            "attention_levels": self.attention_levels,
            "num_groups": self.num_groups,
            "dtype": self.dtype,
        }
        self.encoder = Encoder(out_channels=self.moments * self.z_channels, **common)
        self.decoder = Decoder(out_channels=self.out_channels, **common)
        # Few channels, and in float32: what rounds here would be in every latent.
        self.quant_conv = Dense(self.moments * self.latent_channels)
        self.post_quant_conv = Dense(self.z_channels)

    def _encoded(self, x: jax.Array) -> jax.Array:
        levels = len(self.channel_multipliers)
        if x.ndim != 4:
            raise ValueError(f"x must be [B, H, W, C], got shape {x.shape}")
        height, width = x.shape[1:3]
        factor = 2 ** (levels - 1)
        if height % factor or width % factor:
            raise ValueError(f"H and W must be divisible by {factor}, got {height} x {width}")
        if not set(self.attention_levels) <= set(range(levels)):
            raise ValueError(f"attention_levels {self.attention_levels} are not all among 0 .. {levels - 1}")
        return self.quant_conv(self.encoder(x))

    def decode_quantized(self, z: jax.Array) -> jax.Array:
        """The image [B, f h, f w, out_channels] of z [B, h, w, latent_channels] as it is, quantized before or not.

        Raises:
          ValueError: a wrong shape. Raised while tracing.
        """
        return self._decoded(z)

    def _decoded(self, z: jax.Array) -> jax.Array:
        if z.ndim != 4 or z.shape[-1] != self.latent_channels:
            raise ValueError(f"z must be [B, h, w, {self.latent_channels}], got shape {z.shape}")
        return self.decoder(self.post_quant_conv(z))


class AutoencoderKL(Autoencoder):
    """q(z | x) = N(mean(x), diag(variance(x))) and decode(z): the variational autoencoder of latent diffusion.

    The defaults are those of Stable Diffusion: 83,653,863 parameters, one latent pixel for 8 x 8 image pixels. Its
    diffusion runs on 0.18215 z, of standard deviation about 1; that factor is not in here.

    Source: Rombach et al. 2021 (arXiv:2112.10752), section 3.1 and appendix G.
    """

    moments = 2

    def encode(self, x: jax.Array) -> DiagonalGaussian:
        """q(z | x).

        The log variance is clipped to [-30, 20], as in the published code: beyond, its exponential overflows the
        losses in half precision.

        Args:
          x: [B, H, W, C] images, H and W divisible by f.

        Raises:
          ValueError: a wrong shape, or settings that do not fit it. Raised while tracing.
        """
        mean, log_variance = jnp.split(self._encoded(x), 2, axis=-1)
        return DiagonalGaussian(mean, jnp.clip(log_variance, -30.0, 20.0))

    def decode(self, z: jax.Array) -> jax.Array:
        """The image [B, f h, f w, out_channels] of latents z [B, h, w, latent_channels].

        Raises:
          ValueError: a wrong shape. Raised while tracing.
        """
        return self._decoded(z)

    def __call__(self, x: jax.Array, eps: jax.Array | None = None) -> jax.Array:
        """decode(z) with z ~ q(z | x) made from eps ~ N(0, I), or z = mode if there is none."""
        posterior = self.encode(x)
        return self.decode(posterior.mode() if eps is None else posterior.sample(eps))
