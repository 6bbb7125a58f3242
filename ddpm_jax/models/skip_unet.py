"""The U-Net of score-SDE with an image beside the features: NCSN++, as diffusers has it.

The noisy image itself goes down beside the features and is added to them at every level; on the way up every level adds
to an image that becomes the output.
"""

from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ddpm_jax.models.encoder import Blocks, Resample
from ddpm_jax.models.layers import Attention, Dense, ResBlock, conv3x3
from ddpm_jax.models.unet import UNet

ATTENTION_GROUPS = 32
SCALE = 2**0.5
# What a U-Net has several of and this one has not.
FIXED = {"transformer_depth": 0, "downsample": "conv", "downsample_padding": 0, "upsample": "conv"}


def fir_down(x: jax.Array) -> jax.Array:
    """y[:, n] = (x[:, 2 n - 1] + 3 x[:, 2 n] + 3 x[:, 2 n + 1] + x[:, 2 n + 2]) / 8 along height, then along width.

    Zeros around. The filter (1, 3, 3, 1) of Karras et al. 2019 (arXiv:1912.04958), appendix B.
    """
    for axis in (1, 2):
        size, padded = x.shape[axis], _padded(x, axis)
        a, b, c, d = (lax.slice_in_dim(padded, k, k + size - 1, 2, axis) for k in range(4))
        x = (a + 3 * b + 3 * c + d) / 8
    return x


def fir_up(x: jax.Array) -> jax.Array:
    """y[:, 2 n] = (x[:, n - 1] + 3 x[:, n]) / 4, y[:, 2 n + 1] = (3 x[:, n] + x[:, n + 1]) / 4, and so along width.

    Zeros around. The filter of fir_down.
    """
    for axis in (1, 2):
        size, padded = x.shape[axis], _padded(x, axis)
        before, after = (lax.slice_in_dim(padded, k, k + size, 1, axis) for k in (0, 2))
        y = jnp.stack([before + 3 * x, 3 * x + after], axis=axis + 1) / 4
        x = y.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
    return x


def _padded(x: jax.Array, axis: int) -> jax.Array:
    return jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)])


class SkipUNet(UNet):
    """UNet of which input and output are summed over the levels, with sums divided by sqrt(2).

    On the way down h + dense(x resampled to the level) goes on; on the way up the output is the sum over levels of
    conv(silu(norm(h))), each resampled to the image. Resampling is by a filter, inside res blocks whose shortcut is a
    dense layer. One attention block, not one for each res block, ends an attending level of the way up.

    Source: Song et al. 2020 (arXiv:2011.13456), appendix H.1: the networks of their VE process.

    Attributes: those of UNet, without transformer_depth, downsample, downsample_padding and upsample.
      num_groups: of the norms of the middle and of the last; None for a quarter of the channels, at most 32, as the
        others have. Norms before attention have 32.
    """

    num_groups: int | None = None  # pyright: ignore[reportIncompatibleVariableOverride]

    @nn.nowrap
    def blocks(self, temb: jax.Array, keys: Iterator[jax.Array] | Iterator[None]) -> Blocks:
        middle = super().blocks(temb, keys)
        res_block, attention_block = self.rematerialized(ResBlock), self.rematerialized(Attention)

        def res(
            h: jax.Array, channels: int, name: str, resample: Resample | None = None, groups_in: int | None = None
        ) -> jax.Array:
            if name.startswith("mid_"):
                return middle.res(h, channels, name, resample)
            block = res_block(
                channels, None, self.dropout, self.dtype, self.norm_eps, self.scale_shift_norm, resample,
                self.activation, SCALE, groups_in, resample is not None, name=name,
            )  # fmt: skip
            return block(h, temb, next(keys))

        def attention(h: jax.Array, num_heads: int, name: str) -> jax.Array:
            if name == "mid_attention":
                return middle.attention(h, num_heads, name)
            return attention_block(ATTENTION_GROUPS, self.dtype, self.norm_eps, num_heads, SCALE, name=name)(h)

        return Blocks(res, attention)

    def images(self, x: jax.Array, blocks: Blocks) -> jax.Array:
        """The way down, the middle and the way up, and the sum of the images on the way up."""
        outputs, image = [conv3x3(self.width(0), dtype=self.dtype, name="conv_in")(x)], x
        for level in self.levels:
            for i in range(self.num_res_blocks):
                name, attends = f"down_{level}_{{}}_{i}", self.attends(outputs[-1].shape[1], level)
                outputs.append(self.stage(outputs[-1], blocks, level, name, self.num_heads, attends))
            if level != self.levels[-1]:
                h = blocks.res(outputs[-1], self.width(level), f"down_{level}_downsample", fir_down)
                image = fir_down(image)
                outputs.append(h + Dense(self.width(level), dtype=self.dtype, name=f"down_{level}_skip")(image))
        h, image = self.middle(outputs[-1], blocks), jnp.zeros(())
        for level in reversed(self.levels):
            h = self._rise(h, outputs, blocks, level)
            image = fir_up(image) if image.ndim else image
            if level != 0:
                image = image + self.head(h, f"up_{level}_skip_norm", f"up_{level}_skip", None)
                h = blocks.res(h, h.shape[-1], f"up_{level}_upsample", fir_up)
        return self.head(h, "norm_out", "conv_out", self.num_groups) + image

    def _rise(self, h: jax.Array, outputs: list[jax.Array], blocks: Blocks, level: int) -> jax.Array:
        """The res blocks of this level of the way up, and attention where it has it."""
        attends = self.attends_up(h.shape[1], level)
        for i in range(self.num_res_blocks + 1):
            skip = outputs.pop()
            # Their slip where a block attends: a quarter of the skip alone.
            groups = min(h.shape[-1] + skip.shape[-1] // 4, 32) if attends else None
            h = jnp.concatenate([h, skip], axis=-1)
            h = blocks.res(h, self.width(level), f"up_{level}_res_{i}", None, groups)
        if not attends:
            return h
        num_heads = self.num_heads if self.num_heads_upsample is None else self.num_heads_upsample
        return blocks.attention(h, self.heads(h.shape[-1], num_heads), f"up_{level}_attention_0")

    def check_settings(self) -> None:
        super().check_settings()
        for name, value in FIXED.items():
            if getattr(self, name) != value:
                raise ValueError(f"SkipUNet has {name} {value!r} alone, got {getattr(self, name)!r}")
