"""The text encoder of latent diffusion's text-to-image model: from the tokens of a text to the context of its U-Net.

Tokens are [B, N] integers. Every token attends to every other one, padding included: there is no mask. `dtype` is that
of matrix products; parameters, norms, softmax and the outputs are float32 whatever it is.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from ddpm_jax.models.clip import ACTIVATIONS, small_init
from ddpm_jax.models.transformer import LayerNorm, Mlp, MultiHeadAttention
from ddpm_jax.names import choose

NORM_EPSILON = 1e-5


class Block(nn.Module):
    """x + attention(norm(x)), then + mlp(norm(x)); the heads have a width of their own, and only `out` a bias."""

    num_heads: int
    head_dim: int
    hidden: int
    activation: Callable[[jax.Array], jax.Array]
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inits = {"qkv_init": small_init, "out_init": small_init}
        attention = partial(MultiHeadAttention, self.num_heads, self.dtype, head_dim=self.head_dim, **inits)
        h = LayerNorm(epsilon=NORM_EPSILON, name="norm_1")(x).astype(self.dtype)
        x = x + attention(qkv_bias=False, name="attention")(h, h)
        h = LayerNorm(epsilon=NORM_EPSILON, name="norm_2")(x).astype(self.dtype)
        return x + Mlp(self.hidden, self.activation, self.dtype, kernel_init=small_init, name="mlp")(h)


class LDMBert(nn.Module):
    """model(tokens) = norm(blocks(token embedding + position embedding)), [B, N, C]: the context of a U-Net.

    The defaults are those of the published text-to-image model, with 542,895,360 parameters. Kernels and tables start
    as N(0, 0.02^2).

    Source: Rombach et al. 2021 (arXiv:2112.10752), section 4.3.1 and appendix E.2.1, "transformer"; the heads' width
    and the order of norms are those of their code.

    Attributes:
      width: channels of a token.
      depth: number of blocks.
      num_heads: of the attention.
      head_dim: channels of a head; the heads together may be wider or narrower than a token.
      hidden: hidden units of the MLP.
      vocabulary: tokens are 0 .. vocabulary - 1.
      num_positions: the most tokens of a text.
      activation: of the MLP, "gelu" or "quick_gelu".
      dtype: of matrix products.
    """

    width: int = 1280
    depth: int = 32
    num_heads: int = 8
    head_dim: int = 64
    hidden: int = 5120
    vocabulary: int = 30522
    num_positions: int = 77
    activation: str = "gelu"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """[B, N, width] float32, of each token.

        Args:
          tokens: [B, N] int in [0, vocabulary), N <= num_positions.

        Raises:
          ValueError: a wrong shape or dtype, or no block. Raised while tracing.

        Not checked: the range of the tokens, one out of range gives NaN.
        """
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens must be [B, N] int, got {tokens.dtype}{list(tokens.shape)}")
        if not 1 <= tokens.shape[1] <= self.num_positions:
            raise ValueError(f"N must lie in 1 .. num_positions = {self.num_positions}, got {tokens.shape[1]} tokens")
        if self.depth < 1:
            raise ValueError(f"depth must be at least 1, got {self.depth}")
        embed = partial(nn.Embed, features=self.width, embedding_init=small_init, dtype=self.dtype)
        h = embed(self.vocabulary, name="token_embedding")(tokens)
        h = h + embed(self.num_positions, name="positions")(jnp.arange(tokens.shape[1]))[None]
        activation = choose("activation", self.activation, ACTIVATIONS)
        for i in range(self.depth):
            h = Block(self.num_heads, self.head_dim, self.hidden, activation, self.dtype, name=f"block_{i}")(h)
        return LayerNorm(epsilon=NORM_EPSILON, name="norm_out")(h)
