"""CLIP's text encoder: from the tokens of a text to the context of a conditional U-Net.

Tokens are [B, N] integers, as CLIP's tokenizer makes them: a start token, those of the text, an end token, padding.
`dtype` is that of matrix products; parameters, norms, softmax and the outputs are float32 whatever it is.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from ddpm_jax.models.layers import Dense
from ddpm_jax.models.transformer import LayerNorm, Mlp, gelu
from ddpm_jax.names import choose

small_init = nn.initializers.normal(0.02)


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x), within 0.021 of GELU.

    Source: Hendrycks and Gimpel 2016 (arXiv:1606.08415), section 2.
    """
    return x * nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"quick_gelu": quick_gelu, "gelu": gelu}


class TextFeatures(NamedTuple):
    """What a text encoder says of N tokens, float32."""

    last_hidden: jax.Array
    """[B, N, C] after the last norm: the context of Stable Diffusion's U-Net."""
    pooled: jax.Array
    """[B, C] of these, the one at the end token."""
    hidden: tuple[jax.Array, ...]
    """[B, N, C] before the first block and after each, without the last norm; hidden[-2] skips the last block."""


class MaskedAttention(nn.Module):
    """out(y), y_i = sum_j softmax_j(q_i k_j^T / sqrt(D)) v_j over the tokens j allowed to i, for each head.

    Source: Vaswani et al. 2017 (arXiv:1706.03762), eq. 1 and section 3.2.3.
    """

    num_heads: int
    dtype: Dtype
    key_bias: bool = True  # it adds the same to all logits of a query: some networks have none

    @nn.compact
    def __call__(self, x: jax.Array, allowed: jax.Array) -> jax.Array:
        """x [B, N, C], allowed [B, N, N] or [1, N, N] bool -> [B, N, C]."""
        width = x.shape[-1]
        dense = partial(Dense, width, kernel_init=small_init, dtype=self.dtype)
        heads = (*x.shape[:2], self.num_heads, width // self.num_heads)
        biased = {"query": True, "key": self.key_bias, "value": True}
        q, k, v = (dense(name=name, use_bias=bias)(x).reshape(heads) for name, bias in biased.items())
        logits = jnp.einsum("bihd,bjhd->bhij", q, k).astype(jnp.float32) * heads[-1] ** -0.5
        weights = nn.softmax(jnp.where(allowed[:, None], logits, -jnp.inf)).astype(v.dtype)
        return dense(name="out")(jnp.einsum("bhij,bjhd->bihd", weights, v).reshape(x.shape))


class Block(nn.Module):
    """x + attention(norm(x)), then + mlp(norm(x))."""

    num_heads: int
    hidden: int
    activation: Callable[[jax.Array], jax.Array]
    norm_epsilon: float
    dtype: Dtype
    key_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, allowed: jax.Array) -> jax.Array:
        norm = partial(LayerNorm, epsilon=self.norm_epsilon)
        attention = MaskedAttention(self.num_heads, self.dtype, self.key_bias, name="attention")
        x = x + attention(norm(name="norm_1")(x).astype(self.dtype), allowed)
        mlp = Mlp(self.hidden, self.activation, self.dtype, kernel_init=small_init, name="mlp")
        return x + mlp(norm(name="norm_2")(x).astype(self.dtype))


class CLIPText(nn.Module):
    """model(tokens): TextFeatures, of which that of a token depends on the tokens up to it.

    The defaults are CLIP ViT-L/14's text encoder, that of Stable Diffusion 1, with 123,060,480 parameters. Kernels and
    tables start as N(0, 0.02^2).

    Source: Radford et al. 2021 (arXiv:2103.00020), section 2.4.

    Attributes:
      width: channels of a token, divisible by num_heads.
      depth: number of blocks.
      num_heads: of the attention.
      hidden: hidden units of the MLP.
      vocabulary: tokens are 0 .. vocabulary - 1.
      num_positions: the most tokens of a text.
      activation: of the MLP, "quick_gelu" or "gelu".
      norm_epsilon: added to the variance in every layer norm.
      eos_token: the token that ends a text; None for the largest one in it.
      dtype: of matrix products.
    """

    width: int = 768
    depth: int = 12
    num_heads: int = 12
    hidden: int = 3072
    vocabulary: int = 49408
    num_positions: int = 77
    activation: str = "quick_gelu"
    norm_epsilon: float = 1e-5
    eos_token: int | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array | None = None) -> TextFeatures:
        """The features of every token.

        Args:
          tokens: [B, N] int in [0, vocabulary), N <= num_positions.
          mask: [B, N] bool, False for tokens that no other attends to; None for none of them. Stable Diffusion masks
            nothing, padding included.

        Raises:
          ValueError: a wrong shape or dtype, or settings that do not fit each other. Raised while tracing.

        Not checked: the range of the tokens, one out of range gives NaN, as does a masked first one; that there is an
        eos_token, without one the first token is pooled.
        """
        self._check(tokens, mask)
        embed = partial(nn.Embed, features=self.width, embedding_init=small_init, dtype=self.dtype)
        h = embed(self.vocabulary, name="token_embedding")(tokens)
        h = h + embed(self.num_positions, name="positions")(jnp.arange(tokens.shape[1]))[None]
        activation = choose("activation", self.activation, ACTIVATIONS)
        block = partial(Block, self.num_heads, self.hidden, activation, self.norm_epsilon, self.dtype)
        allowed = jnp.tri(tokens.shape[1], dtype=jnp.bool_)[None]
        allowed = allowed if mask is None else allowed & mask[:, None]
        hidden = [h]
        for i in range(self.depth):
            hidden.append(block(name=f"block_{i}")(hidden[-1], allowed))
        last = LayerNorm(epsilon=self.norm_epsilon, name="norm_out")(hidden[-1])
        ends = tokens if self.eos_token is None else tokens == self.eos_token
        pooled = jnp.take_along_axis(last, jnp.argmax(ends, axis=1)[:, None, None], axis=1)[:, 0]
        return TextFeatures(last, pooled, tuple(x.astype(jnp.float32) for x in hidden))

    def _check(self, tokens: jax.Array, mask: jax.Array | None) -> None:
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens must be [B, N] int, got {tokens.dtype}{list(tokens.shape)}")
        if not 1 <= tokens.shape[1] <= self.num_positions:
            raise ValueError(f"N must lie in 1 .. num_positions = {self.num_positions}, got {tokens.shape[1]} tokens")
        if mask is not None and (mask.shape != tokens.shape or mask.dtype != jnp.bool_):
            raise ValueError(f"mask must be bool {list(tokens.shape)}, got {mask.dtype}{list(mask.shape)}")
        if self.depth < 1:
            raise ValueError(f"depth must be at least 1, got {self.depth}")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not divisible by num_heads {self.num_heads}")
