"""GLIDE: a text encoder, and a U-Net whose attention blocks attend to the text beside the image.

Tokens are [B, N] integers; images [B, H, W, C]; t [B]. `dtype` as in the U-Net.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from ddpm_jax.models.encoder import Blocks
from ddpm_jax.models.layers import Dense, GroupNorm, attend, near_zero_init
from ddpm_jax.models.transformer import LayerNorm
from ddpm_jax.models.unet import UNet
from ddpm_jax.models.uvit import Block

small_init = nn.initializers.normal(0.02)


class TextEncoder(nn.Module):
    """(project(h_N), h), h = norm(blocks(tokens)): a transformer in which every token attends to every other.

    What is masked is replaced by a learned embedding of its place, so a text without tokens is one as well: that of
    classifier-free guidance. Kernels and tables start as N(0, 0.02^2).

    Source: Nichol et al. 2021 (arXiv:2112.10741), section 4.1.

    Attributes:
      out_features: of the projection: 4 times the U-Net's channels.
      width: channels of a token.
      depth: number of blocks.
      num_heads: of the attention.
      vocabulary: tokens are 0 .. vocabulary - 1.
      num_positions: N, the tokens of every text.
      final_norm: whether h is normed; otherwise h = blocks(tokens).
      dtype: of matrix products. Parameters, norms and softmax are float32.
    """

    out_features: int = 768
    width: int = 512
    depth: int = 16
    num_heads: int = 8
    vocabulary: int = 50257
    num_positions: int = 128
    final_norm: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What a U-Net is told of a text.

        Args:
          tokens: [B, N] int in [0, vocabulary).
          mask: [B, N] bool, False for padding.

        Returns:
          [B, out_features], the last token's; and [B, N, width].

        Raises:
          ValueError: a wrong shape or dtype. Raised while tracing.

        Not checked: the range of the tokens. One out of range gives NaN.
        """
        shape = (len(tokens), self.num_positions)
        for name, array, kind in (("tokens", tokens, np.integer), ("mask", mask, np.bool_)):
            if array.shape != shape or not jnp.issubdtype(array.dtype, kind):
                raise ValueError(f"{name} must be {kind.__name__} {list(shape)}, got {array.dtype}{list(array.shape)}")
        embed = partial(nn.Embed, features=self.width, embedding_init=small_init, dtype=self.dtype)
        places = jnp.arange(self.num_positions)
        h = embed(self.vocabulary, name="token_embedding")(tokens) + embed(shape[1], name="positions")(places)[None]
        h = jnp.where(mask[:, :, None], h, embed(shape[1], name="padding")(places)[None])
        for i in range(self.depth):
            h = Block(self.num_heads, 4.0, True, self.dtype, name=f"block_{i}")(h, None)
        if self.final_norm:
            h = LayerNorm(epsilon=1e-5, name="norm_out")(h).astype(self.dtype)
        return Dense(self.out_features, kernel_init=small_init, dtype=self.dtype, name="project")(h[:, -1]), h


class JointAttention(nn.Module):
    """x + out(attend(query(h), [context_key(context), key(h)], [context_value(context), value(h)])), h = norm(x).

    Every pixel attends to all tokens of the context and to all pixels, with one softmax over both.

    Source: Nichol et al. 2021 (arXiv:2112.10741), section 4.1.
    """

    num_groups: int
    dtype: Dtype
    eps: float
    num_heads: int

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """x [B, H, W, C], context [B, N, D] -> [B, H, W, C]."""
        batch, height, width, channels = x.shape
        dense = partial(Dense, channels, dtype=self.dtype)
        h = GroupNorm(self.num_groups, self.eps, name="norm")(x).reshape(batch, height * width, channels)
        q = dense(name="image_query")(h)
        k = jnp.concatenate([dense(name="context_key")(context), dense(name="image_key")(h)], axis=1)
        v = jnp.concatenate([dense(name="context_value")(context), dense(name="image_value")(h)], axis=1)
        h = dense(kernel_init=near_zero_init, name="image_out")(attend(q, k, v, self.num_heads))
        return x + h.reshape(x.shape)


class JointUNet(UNet):
    """UNet with JointAttention to a context wherever it has self attention.

    Source: Nichol et al. 2021 (arXiv:2112.10741), section 4.1.

    Attributes: those of UNet, without transformer_depth, mid_attention_norm, mid_attention_groups and mid_scale.
    """

    @nn.nowrap
    def attend_to(self, context: jax.Array | None, mask: jax.Array | None, blocks: Blocks) -> Blocks:
        """The blocks with joint attention in place of self attention."""
        if mask is not None:
            raise ValueError(f"joint attention is to every token of the context, got a context_mask {mask.shape}")
        if context is None or context.ndim != 3:
            raise ValueError(f"context must be [B, N, D], got {'none' if context is None else context.shape}")
        block = self.rematerialized(JointAttention)

        def attention(h: jax.Array, num_heads: int, name: str) -> jax.Array:
            return block(self.num_groups, self.dtype, self.norm_eps, num_heads, name=name)(h, context)

        return blocks._replace(attention=attention)

    def check_settings(self) -> None:
        super().check_settings()
        if self.transformer_depth != 0 or not self.mid_attention_norm:
            got = f"{self.transformer_depth} and {self.mid_attention_norm}"
            raise ValueError(f"joint attention needs transformer_depth 0 and mid_attention_norm True, got {got}")
        if self.mid_attention_groups is not None or self.mid_scale != 1:
            got = f"{self.mid_attention_groups} and {self.mid_scale}"
            raise ValueError(f"joint attention needs mid_attention_groups None and mid_scale 1, got {got}")


class Glide(nn.Module):
    """model(x_t, t, tokens=..., mask=...): eps and a learned variance of images that a text describes.

    (y, context) = text(tokens, mask), unet(x_t, t, y=y, context=context). A sampler that keeps to one text can compute
    the first once, and be given unet and params["unet"] alone. The original's size: interop.glide.PUBLISHED.

    Source: Nichol et al. 2021 (arXiv:2112.10741), section 4.1.

    Attributes:
      text: the text encoder.
      unet: the U-Net, with class_embed_type "identity": the text's projection joins the embedding of time.
    """

    text: TextEncoder
    unet: JointUNet

    def __call__(
        self,
        x_t: jax.Array,
        t: jax.Array,
        *,
        tokens: jax.Array,
        mask: jax.Array,
        low_res: jax.Array | None = None,
        concat: jax.Array | None = None,
        train: bool = False,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
        """The network's output at x_t, time t and a text.

        Args:
          x_t: [B, H, W, C] noisy images.
          t: [B] float, the model's time.
          tokens: [B, N] int.
          mask: [B, N] bool, False for padding.
          low_res: [B, h, w, C] images to be upsampled, for a network that does that.
          concat: [B, H, W, C + 1] for in-painting: the known pixels, 0 elsewhere, and 1 where they are known, else 0.
          train: whether dropout is on.
          dropout_keys: [B] random keys, as for the U-Net.

        Returns:
          [B, H, W, out_channels] float32.

        Raises:
          ValueError: a wrong shape or dtype, or settings that do not fit it or each other. Raised while tracing.
        """
        if self.text.out_features != 4 * self.unet.channels or self.unet.class_embed_type != "identity":
            raise ValueError(
                "text.out_features must be 4 unet.channels and unet.class_embed_type 'identity', "
                f"got {self.text.out_features}, {4 * self.unet.channels} and {self.unet.class_embed_type!r}"
            )
        if len(tokens) != len(x_t):
            raise ValueError(f"tokens must be [B, N] with B = {len(x_t)}, got {list(tokens.shape)}")
        y, context = self.text(tokens, mask)
        return self.unet(
            x_t, t, y=y, context=context, low_res=low_res, concat=concat, train=train, dropout_keys=dropout_keys
        )
