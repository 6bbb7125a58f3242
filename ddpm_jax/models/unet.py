"""The U-Net of DDPM.

x_t [B, H, W, C] and t [B] go in, an image [B, H, W, out_channels] comes out. Level l works at H / 2^l with
channels * channel_multipliers[l] channels; down_l, up_l in the parameter names are that l, 0 being the finest.
"""

from collections.abc import Iterator, Sequence
from itertools import count, repeat

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from .embeddings import timestep_embedding
from .layers import Attention, Dense, GroupNorm, ResBlock, conv3x3, near_zero_init, upsample_nearest


class UNet(nn.Module):
    """model(x_t, t): eps, x_0 or v, as it was trained. The U-Net of DDPM.

    With the defaults and 32x32x3 images it has 35,746,307 parameters: the paper's CIFAR-10 network.

    Source: Ho et al. 2020 (arXiv:2006.11239), appendix B.

    Attributes:
      channels: width at level 0; the time embedding has 4 times as many.
      channel_multipliers: width of each level in units of `channels`.
      num_res_blocks: res blocks per level on the way down; one more on the way up.
      attention_resolutions: image heights at which every res block is followed by self attention.
      dropout: rate inside the res blocks, when train.
      out_channels: channels of the output.
      num_groups: groups of every group norm.
      dtype: of convolutions and matrix products. Parameters, norms, softmax, the last convolution and the output
        are float32.
    """

    channels: int = 128
    channel_multipliers: Sequence[int] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: Sequence[int] = (16,)
    dropout: float = 0.1
    out_channels: int = 3
    num_groups: int = 32
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x_t: jax.Array, t: jax.Array, *, train: bool = False, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """The network's output at x_t and time t.

        Args:
          x_t: [B, H, W, C] noisy images.
          t: [B] float, the model's time.
          train: whether dropout is on.
          dropout_keys: [B] random keys. The masks of example i depend on dropout_keys[i] only, whatever else is
            in the batch. If None and train, rngs={"dropout": key} is split into B keys.

        Returns:
          [B, H, W, out_channels] float32.

        Raises:
          ValueError: a wrong shape, or settings that do not fit it. Raised while tracing.
        """
        self._check(x_t, t, dropout_keys)
        keys = self._block_keys(len(x_t), train, dropout_keys)
        temb = Dense(4 * self.channels, dtype=self.dtype, name="time_1")(timestep_embedding(t, self.channels))
        temb = Dense(4 * self.channels, dtype=self.dtype, name="time_2")(nn.silu(temb))

        def res(h: jax.Array, level: int, name: str) -> jax.Array:
            width = self.channels * self.channel_multipliers[level]
            return ResBlock(width, self.num_groups, self.dropout, self.dtype, name=name)(h, temb, next(keys))

        def attention(h: jax.Array, name: str) -> jax.Array:
            return Attention(self.num_groups, self.dtype, name=name)(h)

        def stage(h: jax.Array, level: int, way: str, i: int) -> jax.Array:
            h = res(h, level, f"{way}_{level}_res_{i}")
            return attention(h, f"{way}_{level}_attention_{i}") if h.shape[1] in self.attention_resolutions else h

        levels = range(len(self.channel_multipliers))
        h = conv3x3(self.channels, dtype=self.dtype, name="conv_in")(x_t)
        skips = [h]
        for level in levels:
            for i in range(self.num_res_blocks):
                h = stage(h, level, "down", i)
                skips.append(h)
            if level != levels[-1]:
                # "SAME" pads an even image at the bottom and right only, as TensorFlow does.
                h = conv3x3(h.shape[-1], strides=2, dtype=self.dtype, name=f"down_{level}_downsample")(h)
                skips.append(h)

        h = res(h, -1, "mid_res_0")
        h = attention(h, "mid_attention")
        h = res(h, -1, "mid_res_1")

        for level in reversed(levels):
            for i in range(self.num_res_blocks + 1):
                h = stage(jnp.concatenate([h, skips.pop()], axis=-1), level, "up", i)
            if level != 0:
                h = conv3x3(h.shape[-1], dtype=self.dtype, name=f"up_{level}_upsample")(upsample_nearest(h))

        h = nn.silu(GroupNorm(self.num_groups, name="norm_out")(h.astype(jnp.float32)))
        return conv3x3(self.out_channels, dtype=jnp.float32, kernel_init=near_zero_init, name="conv_out")(h)

    def _block_keys(
        self, batch: int, train: bool, dropout_keys: jax.Array | None
    ) -> Iterator[jax.Array] | Iterator[None]:
        """[B] dropout keys for one res block after the other, or None for each where there is no dropout."""
        if not train or self.dropout == 0:
            return repeat(None)
        keys = jax.random.split(self.make_rng("dropout"), batch) if dropout_keys is None else dropout_keys
        fold_in = jax.vmap(jax.random.fold_in, in_axes=(0, None))
        return (fold_in(keys, block) for block in count())

    def _check(self, x_t: jax.Array, t: jax.Array, dropout_keys: jax.Array | None) -> None:
        if x_t.ndim != 4:
            raise ValueError(f"x_t must be [B, H, W, C], got shape {x_t.shape}")
        if t.shape != x_t.shape[:1] or not jnp.issubdtype(t.dtype, jnp.floating):
            raise ValueError(f"t must be [B] float with B = {x_t.shape[0]}, got {t.dtype}{list(t.shape)}")
        if dropout_keys is not None and dropout_keys.shape[:1] != x_t.shape[:1]:
            raise ValueError(f"dropout_keys must be [B] with B = {x_t.shape[0]}, got {list(dropout_keys.shape)}")
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise ValueError(f"channel_multipliers must be positive integers, got {self.channel_multipliers}")
        if self.num_res_blocks < 1:
            raise ValueError(f"num_res_blocks must be at least 1, got {self.num_res_blocks}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.channels % self.num_groups:
            raise ValueError(f"channels {self.channels} is not divisible by num_groups {self.num_groups}")
        height, width = x_t.shape[1:3]
        factor = 2 ** (len(self.channel_multipliers) - 1)
        if height % factor or width % factor:
            raise ValueError(f"H and W must be divisible by {factor}, got {height} x {width}")
        heights = [height >> level for level in range(len(self.channel_multipliers))]
        if not set(self.attention_resolutions) <= set(heights):
            raise ValueError(f"attention_resolutions {self.attention_resolutions} are not all among {heights}")
