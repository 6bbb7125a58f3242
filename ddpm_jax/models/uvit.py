"""U-ViT: a transformer over time, class and patches alike, with long skip connections.

x_t [B, H, W, C] and t [B] go in, an image [B, H, W, out_channels] comes out. The tokens are the class (if there are
classes), the time, and the patches row by row, in this order.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from ddpm_jax.models.dit import patch_init, unpatchify
from ddpm_jax.models.embeddings import timestep_embedding
from ddpm_jax.models.layers import Dense, conv3x3
from ddpm_jax.models.transformer import LayerNorm, Mlp, MultiHeadAttention, gelu

# Bao et al. 2023, table 1. "U-ViT-S/2" is UViT(**SIZES["S"], patch_size=2).
SIZES = {
    "S": {"width": 512, "depth": 13, "num_heads": 8},
    "S (Deep)": {"width": 512, "depth": 17, "num_heads": 8},
    "M": {"width": 768, "depth": 17, "num_heads": 12},
    "L": {"width": 1024, "depth": 21, "num_heads": 16},
    "H": {"width": 1152, "depth": 29, "num_heads": 16},
}

small_init = nn.initializers.normal(0.02)
norm = partial(LayerNorm, epsilon=1e-5)


class Block(nn.Module):
    """h + attention(norm(h)), then + mlp(norm(h)); h = x, or dense([x, skip]) where a long skip connection ends.

    Source: Bao et al. 2023 (arXiv:2209.12152), figure 1 and section 3.1.
    """

    num_heads: int
    mlp_ratio: float
    qkv_bias: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, skip: jax.Array | None) -> jax.Array:
        width = x.shape[-1]
        if skip is not None:
            both = jnp.concatenate([x, skip], axis=-1)
            x = Dense(width, kernel_init=small_init, dtype=self.dtype, name="skip")(both)
        attention = MultiHeadAttention(
            self.num_heads, self.dtype, self.qkv_bias, qkv_init=small_init, out_init=small_init, name="attention"
        )
        h = norm(name="norm_1")(x).astype(self.dtype)
        x = x + attention(h, h)
        mlp = Mlp(int(width * self.mlp_ratio), gelu, self.dtype, kernel_init=small_init, name="mlp")
        return x + mlp(norm(name="norm_2")(x).astype(self.dtype))


class UViT(nn.Module):
    """model(x_t, t, y=labels): eps, x_0 or v, as it was trained.

    The defaults are U-ViT-S/2 for 3 channels, 44 million parameters at 32 x 32 pixels.

    Source: Bao et al. 2023 (arXiv:2209.12152), section 3.

    Attributes:
      width: channels of a token.
      depth: number of blocks, odd: (depth - 1) / 2 whose outputs are kept, one in the middle, as many that take them.
      num_heads: of the attention.
      patch_size: edge of a patch in pixels.
      num_classes: labels are 0 .. num_classes - 1; None for a network without. Published ones count the label that
        stands for no class, the last, among them.
      out_channels: channels of the output.
      mlp_ratio: hidden units of the MLP in units of width.
      qkv_bias: whether queries, keys and values have a bias.
      time_mlp: whether the sinusoids of the time pass through dense, silu, dense.
      final_conv: whether the image passes through a last 3x3 convolution; published latent models have none.
      remat: recompute each block in the backward pass instead of storing what is inside.
      dtype: of matrix products. Parameters, norms, softmax, the last layers and the output are float32.
    """

    width: int = 512
    depth: int = 13
    num_heads: int = 8
    patch_size: int = 2
    num_classes: int | None = None
    out_channels: int = 3
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    time_mlp: bool = False
    final_conv: bool = True
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
        """The network's output at x_t and time t.

        Args:
          x_t: [B, H, W, C] noisy images or latents, H and W divisible by patch_size. Every place has a learned
            position: H and W are those of the training.
          t: [B] float, the model's time.
          y: [B] int labels in [0, num_classes); None without classes.
          train: said to every network that is trained; there is no dropout that it would switch on.
          dropout_keys: likewise.

        Returns:
          [B, H, W, out_channels] float32.

        Raises:
          ValueError: a wrong shape or dtype, or settings that do not fit it. Raised while tracing, as is Flax's
            error about `positions` for images of another size.

        Not checked: the range of y. A label out of range gives NaN.
        """
        self._check(x_t, t, y)
        height, width = x_t.shape[1:3]
        p = self.patch_size
        patches = nn.Conv(
            self.width, (p, p), strides=p, padding="VALID", kernel_init=patch_init, dtype=self.dtype, name="in"
        )
        tokens = [self._time(t)[:, None], patches(x_t).reshape(len(x_t), -1, self.width)]
        if y is not None:
            assert self.num_classes is not None
            table = nn.Embed(self.num_classes, self.width, embedding_init=nn.initializers.normal(1.0), name="label")
            tokens.insert(0, table(y)[:, None].astype(self.dtype))
        h = jnp.concatenate(tokens, axis=1)
        positions = self.param("positions", small_init, h.shape[1:], jnp.float32)
        h = h + positions.astype(h.dtype)[None]

        block = partial(
            nn.remat(Block) if self.remat else Block, self.num_heads, self.mlp_ratio, self.qkv_bias, self.dtype
        )
        skips = []
        for i in range(self.depth // 2):
            h = block(name=f"down_{i}")(h, None)
            skips.append(h)
        h = block(name="mid")(h, None)
        for i in range(self.depth // 2):
            h = block(name=f"up_{i}")(h, skips.pop())

        h = norm(name="norm_out")(h[:, len(tokens) - 1 :])
        h = Dense(p * p * self.out_channels, kernel_init=small_init, dtype=jnp.float32, name="out")(h)
        image = unpatchify(h, height, width, p)
        return conv3x3(self.out_channels, dtype=jnp.float32, name="conv_out")(image) if self.final_conv else image

    def _time(self, t: jax.Array) -> jax.Array:
        """[B, width]."""
        temb = timestep_embedding(t, self.width, cosine_first=True, endpoint=False)
        if not self.time_mlp:
            return temb.astype(self.dtype)
        dense = partial(Dense, kernel_init=small_init, dtype=self.dtype)
        return dense(self.width, name="time_2")(nn.silu(dense(4 * self.width, name="time_1")(temb)))

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
        if self.depth < 1 or self.depth % 2 == 0:
            raise ValueError(f"depth must be odd, got {self.depth}")
