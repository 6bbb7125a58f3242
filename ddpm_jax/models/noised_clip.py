"""CLIP for noisy images: how well x_t fits a text, for classifier guidance by its gradient.

Tokens are [B, N] integers; images [B, H, W, 3], about [-1, 1] where they are clean; t [B]. `dtype` is that of matrix
products; parameters, norms, softmax and the outputs are float32 whatever it is.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from ddpm_jax.models.clip import Block, small_init
from ddpm_jax.models.layers import Dense
from ddpm_jax.models.transformer import LayerNorm, gelu

# Of CLIP's training images, by channel, in levels of 0 to 255.
CHANNEL_MEANS = (122.77093945, 116.74601272, 104.09373519)
CHANNEL_STDS = (68.50053285, 66.63215831, 70.32316309)

norm = partial(LayerNorm, epsilon=1e-5)


def unit(features: jax.Array) -> jax.Array:
    """features / |features| over the last axis."""
    # Of the square, so that the gradient at 0 is 0.
    square = jnp.sum(features**2, axis=-1, keepdims=True)
    return features * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


class _Tower(nn.Module):
    """project(norm(blocks(h)) at one token): what both encoders are made of."""

    features: int
    width: int
    depth: int
    num_heads: int
    dtype: Dtype

    def encoded(self, h: jax.Array, allowed: jax.Array, at: jax.Array) -> jax.Array:
        """h [B, N, C], allowed [1, N, N] bool, at [B] int -> [B, features] of length 1."""
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not divisible by num_heads {self.num_heads}")
        for i in range(self.depth):
            block = Block(self.num_heads, 4 * self.width, gelu, 1e-5, self.dtype, False, name=f"block_{i}")
            h = block(h, allowed)
        h = jnp.take_along_axis(h, at[:, None, None], axis=1)[:, 0]
        h = norm(name="norm_out")(h).astype(self.dtype)
        h = Dense(self.features, use_bias=False, kernel_init=small_init, dtype=self.dtype, name="project")(h)
        return unit(h.astype(jnp.float32))


class TextTower(_Tower):
    """A text's direction [B, features]: a causal transformer, read at the token that ends the text.

    Source: Radford et al. 2021 (arXiv:2103.00020), section 2.4.
    """

    features: int = 512
    width: int = 512
    depth: int = 12
    num_heads: int = 8
    dtype: Dtype = jnp.float32
    vocabulary: int = 65536
    num_positions: int = 77

    @nn.compact
    def __call__(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """tokens [B, num_positions] int, lengths [B] int, start and end counted, in [1, num_positions].

        Raises:
          ValueError: a wrong shape or dtype. Raised while tracing.

        Not checked: the range of either. A token out of range gives NaN.
        """
        for name, array, shape in (
            ("tokens", tokens, (len(tokens), self.num_positions)),
            ("lengths", lengths, (len(tokens),)),
        ):
            if array.shape != shape or not jnp.issubdtype(array.dtype, jnp.integer):
                raise ValueError(f"{name} must be int {list(shape)}, got {array.dtype}{list(array.shape)}")
        embed = partial(nn.Embed, features=self.width, embedding_init=small_init, dtype=self.dtype)
        h = embed(self.vocabulary, name="token_embedding")(tokens)
        h = h + embed(self.num_positions, name="positions")(jnp.arange(self.num_positions))[None]
        return self.encoded(h, jnp.tri(self.num_positions, dtype=jnp.bool_)[None], lengths - 1)


class ImageTower(_Tower):
    """A noisy image's direction [B, features]: a transformer over its patches and its time, read at the time's token.

    Source: Nichol et al. 2021 (arXiv:2112.10741), section 3.4; Radford et al. 2021 (arXiv:2103.00020).
    """

    features: int = 512
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    dtype: Dtype = jnp.float32
    image_size: int = 64
    patch_size: int = 4
    num_timesteps: int = 1000

    @nn.compact
    def __call__(self, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """x_t [B, image_size, image_size, 3]; t [B], the model's time, rounded to a whole number.

        Raises:
          ValueError: a wrong shape, or a size that patches do not fill. Raised while tracing.

        Not checked: that t lies in [0, num_timesteps). One that does not gives NaN.
        """
        size = self.image_size
        if x_t.shape != (len(x_t), size, size, 3) or t.shape != x_t.shape[:1]:
            raise ValueError(f"x_t must be [B, {size}, {size}, 3] and t [B], got {list(x_t.shape)} and {list(t.shape)}")
        if size % self.patch_size:
            raise ValueError(f"image_size {size} is not divisible by patch_size {self.patch_size}")
        means, stds = (jnp.asarray(np.array(values, np.float32)) for values in (CHANNEL_MEANS, CHANNEL_STDS))
        levels = (x_t.astype(jnp.float32) + 1) * 127.5
        patch = (self.patch_size, self.patch_size)
        patches = nn.Conv(
            self.width, patch, patch, "VALID", use_bias=False, kernel_init=small_init, dtype=self.dtype, name="patches"
        )((levels - means.reshape(1, 1, 1, 3)) / stds.reshape(1, 1, 1, 3))
        embed = partial(nn.Embed, features=self.width, embedding_init=small_init, dtype=self.dtype)
        times = embed(self.num_timesteps, name="times")(jnp.round(t).astype(jnp.int32))
        h = jnp.concatenate([times[:, None], patches.reshape(len(x_t), -1, self.width)], axis=1)
        n = h.shape[1]
        h = norm(name="norm_in")(h + embed(n, name="positions")(jnp.arange(n))[None]).astype(self.dtype)
        return self.encoded(h, jnp.ones((1, n, n), jnp.bool_), jnp.zeros(len(x_t), jnp.int32))


class NoisedCLIP(nn.Module):
    """model(x_t, t, tokens=..., lengths=...): logit_scale <image(x_t, t), text(tokens)>, [B] float32.

    Guidance by a text takes the gradient of its sum over the batch:

        fits = bind(model, params, tokens=tokens, lengths=lengths)
        gradient = lambda x, t: jax.grad(lambda x: fits(x, t).sum())(x)
        denoise = guidance.mean_shifted(denoise, gradient, scale=3.0)

    Source: Nichol et al. 2021 (arXiv:2112.10741), sections 2.4 and 3.4.

    Attributes:
      text: the encoder of texts, of the same features as
      image: the encoder of noisy images.
      logit_scale: the inverse of the temperature of its training.
    """

    text: TextTower
    image: ImageTower
    logit_scale: float = 100.0

    def __call__(self, x_t: jax.Array, t: jax.Array, *, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """How well each x_t fits its text. Arguments and errors are those of the encoders."""
        if self.text.features != self.image.features:
            raise ValueError(
                f"text and image must have the same features, got {self.text.features} and {self.image.features}"
            )
        return self.logit_scale * jnp.sum(self.image(x_t, t) * self.text(tokens, lengths), axis=-1)
