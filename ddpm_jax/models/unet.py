"""The U-Net of DDPM, IDDPM and ADM.

x_t [B, H, W, C] and t [B] go in, an image [B, H, W, out_channels] comes out.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.models.encoder import Blocks, Encoder, each
from ddpm_jax.models.layers import GroupNorm, conv3x3, near_zero_init, upsample_nearest
from ddpm_jax.models.transformer import SpatialTransformer
from ddpm_jax.names import unknown


class UNet(Encoder):
    """model(x_t, t, y=..., low_res=..., concat=...): eps, x_0 or v, as it was trained, and a variance if learned.

    With the defaults and 32x32x3 images it has 35,746,307 parameters: DDPM's CIFAR-10 network. Layers start as
    Ho et al.'s do, whatever the settings.

    Source: Ho et al. 2020 (arXiv:2006.11239), appendix B; Nichol and Dhariwal 2021 (arXiv:2102.09672), section 3.1
    and appendix A; Dhariwal and Nichol 2021 (arXiv:2105.05233), section 3.

    Attributes, besides those of Encoder; with time_embedding "fourier" the output is divided by t:
      attention_factors_up: attention_factors of the way up; None where it attends at the levels of the way down.
      num_heads_upsample: heads of the attention blocks on the way up; None for num_heads.
      upsample: "conv" (nearest, then a convolution), "nearest" or "resblock" (inside one more res block); or a
        sequence with one of these per step between levels, the finest first.
      num_classes: labels y [B] in [0, num_classes) are embedded and added to the embedding of time.
      class_embed_type: instead, what y is: "timestep" (y [B] float is embedded as t is) or "identity" (y is an
        embedding [B, 4 channels]); None with num_classes or without y.
      transformer_depth: blocks of the spatial transformer that stands wherever self attention would, and attends to a
        context too, as in latent diffusion; 0 for self attention.
      center_input_sample: images in [0, 1] go in; the network sees 2 x_t - 1.
    """

    attention_factors_up: Sequence[int] | None = None
    num_heads_upsample: int | None = None
    upsample: str | Sequence[str] = "conv"
    num_classes: int | None = None
    class_embed_type: str | None = None
    transformer_depth: int = 0
    center_input_sample: bool = False

    @nn.compact
    def __call__(
        self,
        x_t: jax.Array,
        t: jax.Array,
        *,
        y: jax.Array | None = None,
        context: jax.Array | None = None,
        context_mask: jax.Array | None = None,
        low_res: jax.Array | None = None,
        concat: jax.Array | None = None,
        train: bool = False,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
        """The network's output at x_t and time t.

        Args:
          x_t: [B, H, W, C] noisy images.
          t: [B] float, the model's time.
          y: the class: see num_classes and class_embed_type. A label of num_classes or more gives NaN.
          context: [B, M, D], for example M tokens of a text; with transformer_depth, and only then.
          context_mask: [B, M], 1 or True for tokens of the context that are attended to, 0 or False for padding.
          low_res: [B, h, w, K] images to be upsampled: resized bilinearly to H x W and appended to the channels.
          concat: [B, H, W, K] images appended to the channels, as a mask and the image outside it for in-painting.
          train: whether dropout is on.
          dropout_keys: [B] random keys. The masks of example i depend on dropout_keys[i] only, whatever else is
            in the batch. If None and train, rngs={"dropout": key} is split into B keys.

        Returns:
          [B, H, W, out_channels] float32.

        Raises:
          ValueError: a wrong shape, settings that do not fit it or each other, a class where none is expected or
            none where one is. Raised while tracing.
        """
        self.check_inputs(x_t, t, dropout_keys)
        self._check_class(len(x_t), y)
        keys = self.block_keys(len(x_t), train, dropout_keys)
        temb = self.embed_time(t)
        if y is not None:
            temb = temb + self._embed_class(y).astype(temb.dtype)
        blocks = self.attend_to(context, context_mask, self.blocks(temb, keys))
        h = self.images(self.condition(x_t, low_res, concat), blocks)
        return h / t.astype(h.dtype)[:, None, None, None] if self.time_embedding == "fourier" else h

    def condition(self, x_t: jax.Array, low_res: jax.Array | None, concat: jax.Array | None) -> jax.Array:
        """The channels the first convolution sees: x_t, low_res at its size, concat."""
        x = [2 * x_t - 1 if self.center_input_sample else x_t]
        if low_res is not None:
            sizes = zip(low_res.shape[1:3], x_t.shape[1:3], strict=True)
            if low_res.ndim != 4 or len(low_res) != len(x_t) or any(low > high for low, high in sizes):
                raise ValueError(f"low_res must be [B, h, w, K], no larger than x_t {x_t.shape}, got {low_res.shape}")
            x.append(jax.image.resize(low_res, (*x_t.shape[:3], low_res.shape[-1]), "bilinear"))
        if concat is not None:
            if concat.shape[:-1] != x_t.shape[:-1]:
                raise ValueError(f"concat must be [B, H, W, K] like x_t {x_t.shape}, got {concat.shape}")
            x.append(concat)
        return jnp.concatenate(x, axis=-1)

    @nn.nowrap
    def attend_to(self, context: jax.Array | None, mask: jax.Array | None, blocks: Blocks) -> Blocks:
        """The blocks with spatial transformers in place of self attention, if this network has them."""
        if self.transformer_depth < 0:
            raise ValueError(f"transformer_depth must be at least 0, got {self.transformer_depth}")
        if (context is not None) != (self.transformer_depth > 0):
            got = "none" if context is None else f"shape {context.shape}"
            raise ValueError(f"context goes with transformer_depth > 0, got {got} and {self.transformer_depth}")
        if context is None:
            if mask is not None:
                raise ValueError(f"context_mask goes with a context, got shape {mask.shape} and none")
            return blocks
        transformer = self.rematerialized(SpatialTransformer)

        def attention(h: jax.Array, num_heads: int, name: str) -> jax.Array:
            block = transformer(num_heads, self.transformer_depth, self.num_groups, self.dtype, name=name)
            return block(h, context, mask)

        return blocks._replace(attention=attention)

    def images(self, x: jax.Array, blocks: Blocks) -> jax.Array:
        """The way down, the middle, the way up, and the last norm and convolution."""
        skips = self.down(x, blocks)
        h = self.middle(skips[-1], blocks)
        num_heads = self.num_heads if self.num_heads_upsample is None else self.num_heads_upsample
        for level in reversed(self.levels):
            for i in range(self.num_res_blocks + 1):
                attends = self.attends_up(h.shape[1], level)
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self.stage(h, blocks, level, f"up_{level}_{{}}_{i}", num_heads, attends)
            if level != 0:
                h = self._double(h, blocks, level)
        return self.head(h, "norm_out", "conv_out", self.num_groups)

    def head(self, h: jax.Array, norm: str, conv: str, num_groups: int | None) -> jax.Array:
        """conv(silu(norm(h))) in float32, with these names: from features to an image."""
        h = nn.silu(GroupNorm(num_groups, self.norm_eps, name=norm)(h.astype(jnp.float32)))
        return conv3x3(self.out_channels, dtype=jnp.float32, kernel_init=near_zero_init, name=conv)(h)

    def attends_up(self, height: int, level: int) -> bool:
        """Whether res blocks of this level, at this height, are followed by attention on the way up."""
        factors = self.attention_factors_up
        return self.attends(height, level) if factors is None else 2**level in factors

    def _double(self, h: jax.Array, blocks: Blocks, level: int) -> jax.Array:
        name, kind = f"up_{level}_upsample", each(self.upsample, level - 1)
        if kind == "resblock":
            return blocks.res(h, h.shape[-1], name, upsample_nearest)
        h = upsample_nearest(h)
        return h if kind == "nearest" else conv3x3(h.shape[-1], dtype=self.dtype, name=name)(h)

    def _embed_class(self, y: jax.Array) -> jax.Array:
        if self.class_embed_type == "identity":
            return y
        if self.class_embed_type == "timestep":
            return self.embed(y, "class")
        assert self.num_classes is not None
        # N(0, 1), as every embedding table of PyTorch: of the size the time embedding's sinusoids have.
        table = nn.Embed(
            self.num_classes, 4 * self.channels, embedding_init=nn.initializers.normal(1.0), name="class_embedding"
        )
        return table(y)

    def check_settings(self) -> None:
        super().check_settings()
        self.check_resampling("upsample", self.upsample, ("conv", "nearest", "resblock"))
        self.check_factors("attention_factors_up", self.attention_factors_up)
        if self.class_embed_type not in (None, "timestep", "identity"):
            raise unknown("class_embed_type", str(self.class_embed_type), ("timestep", "identity"))
        if self.class_embed_type is not None and self.num_classes is not None:
            raise ValueError(f"class_embed_type {self.class_embed_type!r} excludes num_classes {self.num_classes}")

    def _check_class(self, batch: int, y: jax.Array | None) -> None:
        if self.num_classes is None and self.class_embed_type is None:
            if y is not None:
                raise ValueError("y was given to a model without classes: set num_classes or class_embed_type")
            return
        shape = (batch, 4 * self.channels) if self.class_embed_type == "identity" else (batch,)
        kind = jnp.integer if self.class_embed_type is None else jnp.floating
        if y is None or y.shape != shape or not jnp.issubdtype(y.dtype, kind):
            got = "none" if y is None else f"{y.dtype}{list(y.shape)}"
            raise ValueError(f"y must be {kind.__name__} {list(shape)}, got {got}")
