"""VQModel: the autoencoder whose latents are vectors from a codebook.

Images are [B, H, W, C], scaled to [-1, 1]; latents [B, H / f, W / f, D]. There are two kinds: what `encode` returns,
any real numbers, on which a diffusion can run; and `quantize` of them, nearest entries of the codebook.
"""

from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax import lax

from ddpm_jax.models.autoencoder import Autoencoder


class Quantized(NamedTuple):
    """Latents from the codebook: z [B, h, w, D] and their indices [B, h, w] int32."""

    z: jax.Array
    indices: jax.Array


def nearest(z: jax.Array, codebook: jax.Array) -> jax.Array:
    """argmin_k |z - codebook_k|, the first of equals; int32 of shape z.shape[:-1].

    Source: van den Oord et al. 2017 (arXiv:1711.00937), eq. 1.

    Args:
      z: [..., D].
      codebook: [K, D].
    """
    # |z|^2 is the same for all k. At full precision: rounding z e to TF32 would change codes.
    product = jnp.einsum("...d,kd->...k", z, codebook, precision=lax.Precision.HIGHEST)
    squares = (codebook**2).sum(axis=-1)
    return jnp.argmin(squares.reshape((1,) * (z.ndim - 1) + (-1,)) - 2 * product, axis=-1).astype(jnp.int32)


BetaOn = Literal["encoder", "codebook"]


def quantization_loss(
    z: jax.Array, z_q: jax.Array, *, commitment: float = 0.25, beta_on: BetaOn = "encoder"
) -> jax.Array:
    """mean((stop(z) - z_q)^2) + commitment mean((z - stop(z_q))^2), a scalar.

    With beta_on "codebook" the factor is on the first term instead: so do taming's VectorQuantizer, its
    VectorQuantizer2 by default (legacy=True), and diffusers' VQModel. The value is the same, the gradients are not.

    Source: van den Oord et al. 2017 (arXiv:1711.00937), eq. 3, second and third term.

    Args:
      z: [B, h, w, D] what was encoded.
      z_q: codebook entries, like z; not what `quantize` returns, whose gradient goes past the codebook.
      commitment: beta.
      beta_on: which of the two learns by so much less: the encoder, as in the paper, or the codebook.
    """
    of_encoder, of_codebook = (commitment, 1.0) if beta_on == "encoder" else (1.0, commitment)
    codebook_term = jnp.mean((lax.stop_gradient(z) - z_q) ** 2)
    return of_codebook * codebook_term + of_encoder * jnp.mean((z - lax.stop_gradient(z_q)) ** 2)


class Quantizing(Autoencoder):
    """decode(encode(x)) of an autoencoder whose decoder quantizes; each kind has its own `encode` and `quantize`."""

    def encode(self, x: jax.Array) -> jax.Array:
        """Latents [B, H / f, W / f, latent_channels] of images x [B, H, W, C], not quantized.

        Raises:
          ValueError: a wrong shape, or settings that do not fit it. Raised while tracing.
        """
        return self._encoded(x)

    def quantize(self, z: jax.Array) -> Quantized:
        """What there is for latents z, the gradient passed on to them."""
        raise NotImplementedError

    def decode(self, z: jax.Array) -> jax.Array:
        """The image [B, f h, f w, out_channels] of quantize(z), for z [B, h, w, latent_channels].

        Raises:
          ValueError: a wrong shape. Raised while tracing.
        """
        return self._decoded(self.quantize(z).z)

    def __call__(self, x: jax.Array) -> jax.Array:
        """decode(encode(x))."""
        return self.decode(self.encode(x))


class VQModel(Quantizing):
    """decode(encode(x)), with z replaced by the nearest codebook entries on the way.

    Source: van den Oord et al. 2017 (arXiv:1711.00937), section 3; Rombach et al. 2021 (arXiv:2112.10752), section
    3.1: the quantization belongs to the decoder.

    Attributes: those of Autoencoder, and
      num_codes: entries of the codebook.
    """

    num_codes: int = 256

    def setup(self) -> None:
        super().setup()

        def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -1 / self.num_codes, 1 / self.num_codes)

        self.codebook = nn.Embed(self.num_codes, self.latent_channels, embedding_init=uniform)

    def quantize(self, z: jax.Array) -> Quantized:
        """The nearest codebook entries of z; the gradient is passed through as if they were z."""
        indices = nearest(z, self.codebook.embedding)
        return Quantized(z + lax.stop_gradient(self.codebook(indices) - z), indices)

    def entries(self, indices: jax.Array) -> jax.Array:
        """codebook[indices]: [..., D] for int indices [...]."""
        return self.codebook(indices)
