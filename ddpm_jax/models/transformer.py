"""The blocks of the transformers: attention over tokens, feed-forward, and the transformer inside a U-Net.

Tokens are [B, N, C], images [B, H, W, C]; the token of pixel (i, j) is i W + j. `dtype` is that of matrix products;
parameters, norms and softmax are float32 whatever it is.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from ddpm_jax.models.layers import Dense, GroupNorm, attend, init

gelu = partial(jax.nn.gelu, approximate=False)
gelu_tanh = partial(jax.nn.gelu, approximate=True)

MASKED = -1e4
"""Added to the logits of what is not attended to, as in diffusers: a text without tokens is then one of all tokens."""


class LayerNorm(nn.LayerNorm):
    """scale * (x - mean) / sqrt(variance + epsilon) + bias, mean and variance over the last axis; in float32.

    Source: Ba et al. 2016 (arXiv:1607.06450), section 3.
    """

    # E[x^2] - E[x]^2 would lose digits.
    use_fast_variance: bool = False

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        return super().__call__(x.astype(jnp.float32), mask=mask)


class MultiHeadAttention(nn.Module):
    """out(attend(query(x), key(context), value(context), bias)); self attention where context is x.

    A head has head_dim channels, by default the width of x over num_heads.

    Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.2.2.
    """

    num_heads: int
    dtype: Dtype
    qkv_bias: bool = True
    qkv_init: nn.initializers.Initializer = init
    out_init: nn.initializers.Initializer = init
    head_dim: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        width = x.shape[-1]
        inner = width if self.head_dim is None else self.num_heads * self.head_dim
        project = partial(Dense, inner, use_bias=self.qkv_bias, kernel_init=self.qkv_init, dtype=self.dtype)
        q, k, v = project(name="query")(x), project(name="key")(context), project(name="value")(context)
        h = attend(q, k, v, self.num_heads, bias)
        return Dense(width, kernel_init=self.out_init, dtype=self.dtype, name="out")(h)


class Mlp(nn.Module):
    """out(activation(in(x))), hidden units wide in between.

    Source: Vaswani et al. 2017 (arXiv:1706.03762), eq. 2, with another activation.
    """

    hidden: int
    activation: Callable[[jax.Array], jax.Array]
    dtype: Dtype
    kernel_init: nn.initializers.Initializer = init

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = partial(Dense, kernel_init=self.kernel_init, dtype=self.dtype)
        return dense(x.shape[-1], name="out")(self.activation(dense(self.hidden, name="in")(x)))


class GatedMlp(nn.Module):
    """out(a * gelu(b)), [a, b] = in(x), each hidden units wide: GEGLU.

    Source: Shazeer 2020 (arXiv:2002.05202), eq. 6; the gate is the second half, as in LDM's code.
    """

    hidden: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a, b = jnp.split(Dense(2 * self.hidden, dtype=self.dtype, name="in")(x), 2, axis=-1)
        return Dense(x.shape[-1], dtype=self.dtype, name="out")(a * gelu(b))


class CrossAttentionBlock(nn.Module):
    """x + self attention, then + attention to the context, then + gated MLP, each after a layer norm.

    Source: Rombach et al. 2021 (arXiv:2112.10752), appendix E.2.1.
    """

    num_heads: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        def norm(x: jax.Array, name: str) -> jax.Array:
            return LayerNorm(epsilon=1e-5, name=name)(x).astype(x.dtype)

        attention = partial(MultiHeadAttention, self.num_heads, self.dtype, qkv_bias=False)
        h = norm(x, "norm_1")
        x = x + attention(name="self_attention")(h, h)
        x = x + attention(name="cross_attention")(norm(x, "norm_2"), context, bias)
        return x + GatedMlp(4 * x.shape[-1], self.dtype, name="mlp")(norm(x, "norm_3"))


class SpatialTransformer(nn.Module):
    """x + out(blocks(in(norm(x)))) over the H * W pixels as tokens, which also attend to a context.

    Source: Rombach et al. 2021 (arXiv:2112.10752), section 3.3 and appendix E.2.1.
    """

    num_heads: int
    depth: int
    num_groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """
        Args:
          x: [B, H, W, C].
          context: [B, M, D], for example M tokens of a text.
          mask: [B, M], 1 or True for tokens that are attended to, 0 or False for padding; None for all of them.

        Raises:
          ValueError: context is not [B, M, D] or mask not [B, M], or C not divisible by num_heads. Raised while
            tracing.
        """
        batch, height, width, channels = x.shape
        if context.ndim != 3 or len(context) != batch:
            raise ValueError(f"context must be [B, M, D] with B = {batch}, got shape {context.shape}")
        if mask is not None and mask.shape != context.shape[:2]:
            raise ValueError(f"context_mask must be [B, M] = {list(context.shape[:2])}, got {list(mask.shape)}")
        bias = None if mask is None else MASKED * (1 - mask.astype(jnp.float32))
        # The epsilon is that of LDM's code, also where its residual blocks have 1e-5.
        h = GroupNorm(self.num_groups, name="norm")(x).reshape(batch, height * width, channels)
        h = Dense(channels, dtype=self.dtype, name="project_in")(h)
        for i in range(self.depth):
            h = CrossAttentionBlock(self.num_heads, self.dtype, name=f"block_{i}")(h, context, bias)
        h = Dense(channels, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="project_out")(h)
        return x + h.reshape(x.shape)
