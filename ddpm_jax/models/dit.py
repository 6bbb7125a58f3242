"""DiT: a transformer over patches, steered by time and class through adaptive layer norm.

x_t [B, H, W, C], t [B] and, with classes, labels y [B] go in, an image [B, H, W, out_channels] comes out. Token
i W/p + j is the patch at rows i p .. i p + p - 1 and columns j p .. j p + p - 1.
"""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from ddpm_jax.models.embeddings import timestep_embedding
from ddpm_jax.models.layers import Dense, init
from ddpm_jax.models.transformer import LayerNorm, Mlp, MultiHeadAttention, gelu_tanh

# Peebles and Xie 2022, table 1. "DiT-XL/2" is DiT(**SIZES["XL"], patch_size=2).
SIZES = {
    "S": {"width": 384, "depth": 12, "num_heads": 6},
    "B": {"width": 768, "depth": 12, "num_heads": 12},
    "L": {"width": 1024, "depth": 24, "num_heads": 16},
    "XL": {"width": 1152, "depth": 28, "num_heads": 16},
}

# Sines and cosines of the time, whatever the width.
NUM_FREQUENCIES = 256

small_init = nn.initializers.normal(0.02)
# Xavier as for one matrix [C, 3 C] of query, key and value: 2 / (C + 3 C) instead of 2 / (C + C).
qkv_init = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")

norm = partial(LayerNorm, use_scale=False, use_bias=False)


def patch_init(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> jax.Array:
    """Xavier as for the dense layer from a patch to a token, which the convolution is."""
    return init(key, (math.prod(shape[:-1]), shape[-1]), dtype).reshape(shape)


def sincos_positions(height: int, width: int, dim: int, base_size: float | None = None) -> np.ndarray:
    """[sin(j w), cos(j w), sin(i w), cos(i w)] for row i and column j, w_k = 10000^(-k / n), n = dim / 4.

    Columns first, as in the published code. With a base_size b the places are i b / height and j b / width, those of a
    grid b x b, however many tokens lie on it.

    Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.5, for each of two coordinates; Peebles and Xie 2022
    (arXiv:2212.09748), section 3.2; base_size: as in diffusers, whose interpolation_scale s is base_size / s here.

    Returns:
      [height * width, dim] float32, computed in float64 from places in float32.

    Raises:
      ValueError: dim is not divisible by 4, or base_size is not positive.

    Example:
      >>> sincos_positions(1, 2, 4)[0].tolist()
      [0.0, 1.0, 0.0, 1.0]
    """
    if dim % 4:
        raise ValueError(f"width must be divisible by 4, got {dim}")
    if base_size is not None and not 0 < base_size < math.inf:
        raise ValueError(f"base_size must be positive, got {base_size}")
    frequencies = 10000.0 ** (-np.arange(dim // 4) / (dim // 4))
    # In the order of diffusers, whose places are float32.
    steps = [np.float32(1 if base_size is None else size / base_size) for size in (height, width)]
    places = np.meshgrid(np.arange(height) / steps[0], np.arange(width) / steps[1], indexing="ij")
    row, column = np.stack(places).astype(np.float32).reshape(2, -1, 1) * frequencies
    parts = [np.sin(column), np.cos(column), np.sin(row), np.cos(row)]
    return np.concatenate(parts, axis=-1).astype(np.float32)


def unpatchify(tokens: jax.Array, height: int, width: int, patch_size: int) -> jax.Array:
    """y[b, i p + k, j p + l, c] = tokens[b, i W/p + j, (k p + l) C + c], an image [B, height, width, C]."""
    p = patch_size
    patches = tokens.reshape(len(tokens), height // p, width // p, p, p, -1)
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(len(tokens), height, width, -1)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """x * (1 + scale) + shift, in float32."""
    return x * (1 + scale.astype(jnp.float32)) + shift.astype(jnp.float32)


class Condition(nn.Module):
    """mlp(timestep_embedding(t)) + table[y]; without labels (num_labels None) the first term alone.

    Source: Peebles and Xie 2022 (arXiv:2212.09748), section 3.2.
    """

    width: int
    num_labels: int | None
    time_endpoint: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, t: jax.Array, y: jax.Array | None) -> jax.Array:
        dense = partial(Dense, self.width, kernel_init=small_init, dtype=self.dtype)
        temb = timestep_embedding(t, NUM_FREQUENCIES, cosine_first=True, endpoint=self.time_endpoint)
        temb = dense(name="time_2")(nn.silu(dense(name="time_1")(temb)))
        if self.num_labels is None or y is None:
            return temb
        label = nn.Embed(self.num_labels, self.width, embedding_init=small_init, dtype=self.dtype, name="label")
        return temb + label(y)


class DiTBlock(nn.Module):
    """x + gate_1 attention(modulated norm(x)), then + gate_2 mlp(modulated norm(x)): adaLN-Zero.

    Shifts, scales and gates are affine in silu(condition), and zero at the start: the block is then the identity.

    Source: Peebles and Xie 2022 (arXiv:2212.09748), section 3.2 and figure 3.
    """

    num_heads: int
    mlp_ratio: float
    mlp_norm_epsilon: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """x [B, N, C], condition [B, C] -> [B, N, C]."""
        width = x.shape[-1]
        modulation = Dense(6 * width, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="modulation")
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(
            modulation(nn.silu(condition))[:, None], 6, axis=-1
        )
        attention = MultiHeadAttention(self.num_heads, self.dtype, qkv_init=qkv_init, name="attention")
        mlp = Mlp(int(width * self.mlp_ratio), gelu_tanh, self.dtype, name="mlp")
        h = modulate(norm(epsilon=1e-6, name="norm_1")(x), shift_1, scale_1).astype(self.dtype)
        x = x + gate_1 * attention(h, h)
        h = modulate(norm(epsilon=self.mlp_norm_epsilon, name="norm_2")(x), shift_2, scale_2).astype(self.dtype)
        return x + gate_2 * mlp(h)


class DiT(nn.Module):
    """model(x_t, t, y=labels): eps, x_0 or v, as it was trained; with learned variance, that after it.

    The defaults are DiT-XL/2 for 4 latent channels.

    Source: Peebles and Xie 2022 (arXiv:2212.09748), section 3.2.

    Attributes:
      width: channels of a token, divisible by 4 and by num_heads.
      depth: number of blocks.
      num_heads: of the attention.
      patch_size: edge of a patch in pixels.
      num_classes: labels are 0 .. num_classes - 1; None for a network without.
      null_label: whether, with classes, num_classes is a label too, the one that stands for no class.
      out_channels: channels of the output; twice the input's where the variance is learned.
      mlp_ratio: hidden units of the MLP in units of width.
      base_size: the places of tokens are those of a grid of this many tokens in height and width; None for those of the
        image's own grid.
      time_endpoint: whether the frequencies of the time end at 1/10000 exactly, as in diffusers' DiT.
      condition_per_block: whether every block embeds t and y with parameters of its own, as in diffusers' DiT. The
        output layer then uses those of the first block.
      mlp_norm_epsilon: of the norm before the MLP; diffusers' DiT has 1e-5.
      remat: recompute each block in the backward pass instead of storing what is inside.
      dtype: of matrix products. Parameters, norms, softmax, the last layer and the output are float32.
    """

    width: int = 1152
    depth: int = 28
    num_heads: int = 16
    patch_size: int = 2
    num_classes: int | None = 1000
    null_label: bool = True
    out_channels: int = 8
    mlp_ratio: float = 4.0
    base_size: float | None = None
    time_endpoint: bool = False
    condition_per_block: bool = False
    mlp_norm_epsilon: float = 1e-6
    remat: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x_t: jax.Array,
        t: jax.Array,
        *,
        y: jax.Array | None = None,
        train: bool = False,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
        """The network's output at x_t, time t and class y.

        Args:
          x_t: [B, H, W, C] noisy images or latents, H and W divisible by patch_size.
          t: [B] float, the model's time.
          y: [B] int labels in [0, num_classes); num_classes for no class. None without classes.
          train: said to every network that is trained; there is no dropout that it would switch on.
          dropout_keys: likewise.

        Returns:
          [B, H, W, out_channels] float32.

        Raises:
          ValueError: a wrong shape or dtype, or settings that do not fit it. Raised while tracing.

        Not checked: the range of y. A label out of range gives NaN.
        """
        self._check(x_t, t, y)
        height, width = x_t.shape[1:3]
        p = self.patch_size
        patches = nn.Conv(
            self.width, (p, p), strides=p, padding="VALID", kernel_init=patch_init, dtype=self.dtype, name="in"
        )
        h = patches(x_t).reshape(len(x_t), -1, self.width)
        positions = sincos_positions(height // p, width // p, self.width, self.base_size)
        h = h + jnp.asarray(positions, h.dtype)[None]

        num_labels = None if self.num_classes is None else self.num_classes + self.null_label
        embed = partial(Condition, self.width, num_labels, self.time_endpoint, self.dtype)
        num_embeddings = self.depth if self.condition_per_block else 1
        conditions = [embed(name=f"condition_{i}")(t, y) for i in range(num_embeddings)]
        block = nn.remat(DiTBlock) if self.remat else DiTBlock
        block = partial(block, self.num_heads, self.mlp_ratio, self.mlp_norm_epsilon, self.dtype)
        for i in range(self.depth):
            h = block(name=f"block_{i}")(h, conditions[i % num_embeddings])

        last = partial(Dense, kernel_init=nn.initializers.zeros, dtype=jnp.float32)
        modulation = last(2 * self.width, name="modulation")(nn.silu(conditions[0]).astype(jnp.float32))
        shift, scale = jnp.split(modulation[:, None], 2, axis=-1)
        h = modulate(norm(epsilon=1e-6, name="norm_out")(h), shift, scale)
        return unpatchify(last(p * p * self.out_channels, name="out")(h), height, width, p)

    def _check(self, x_t: jax.Array, t: jax.Array, y: jax.Array | None) -> None:
        if x_t.ndim != 4:
            raise ValueError(f"x_t must be [B, H, W, C], got shape {x_t.shape}")
        if t.shape != x_t.shape[:1] or not jnp.issubdtype(t.dtype, jnp.floating):
            raise ValueError(f"t must be [B] float with B = {x_t.shape[0]}, got {t.dtype}{list(t.shape)}")
        if (y is None) != (self.num_classes is None):
            raise ValueError(
                f"y goes with num_classes, got y={'None' if y is None else y.shape} and {self.num_classes}"
            )
        if y is not None and (y.shape != x_t.shape[:1] or not jnp.issubdtype(y.dtype, jnp.integer)):
            raise ValueError(f"y must be [B] int with B = {x_t.shape[0]}, got {y.dtype}{list(y.shape)}")
        height, width = x_t.shape[1:3]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"H and W must be divisible by patch_size {self.patch_size}, got {height} x {width}")
        if self.depth < 1:
            raise ValueError(f"depth must be at least 1, got {self.depth}")
        if self.mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio must be positive, got {self.mlp_ratio}")
