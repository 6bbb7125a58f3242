"""One pass of an autoencoder as it is trained: the reconstruction, and what keeps its latents in bounds.

A penalty is a scalar of a batch. That of a KL is divided by the H W C numbers of an image, as the reconstruction's loss
is, so that the weight of one against the other is that of latent-diffusion, which sums both over an image.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from ddpm_jax.models.autoencoder import Autoencoder, AutoencoderKL, DiagonalGaussian
from ddpm_jax.models.quantizers import FSQModel
from ddpm_jax.models.vq import BetaOn, Quantized, VQModel, quantization_loss


class Passed(NamedTuple):
    """Of a batch of images [B, H, W, C].

    Attributes:
      z: [B, h, w, D] latents: a draw of the posterior, or what was encoded, not quantized.
      codes: [B, h, w] int32, and () without a quantizer.
      kl: [B] nats of each image, and () without a posterior.
    """

    z: jax.Array
    codes: Any = ()
    kl: Any = ()


def of_kl(
    model: AutoencoderKL, params: Any, x: jax.Array, eps: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], Passed]:
    """((decode(z), E KL(q(z | x) || N(0, I)) / (H W C)), ...) for z = mean + deviation eps.

    Source: Kingma and Welling 2013 (arXiv:1312.6114), eq. 10; the weight that is put on it is Rombach et al.'s.
    """
    posterior = cast(DiagonalGaussian, _apply(model, params, x, "encode"))
    z, kl = posterior.sample(eps), posterior.kl()
    return (_apply(model, params, z, "decode"), jnp.mean(kl) / x[0].size), Passed(z, kl=kl)


def of_codebook(
    model: VQModel, params: Any, x: jax.Array, *, commitment: float, beta_on: BetaOn = "encoder", learned: bool = True
) -> tuple[tuple[jax.Array, jax.Array], Passed]:
    """((decode(quantized z), the quantization's loss), ...), the gradient of the quantized z passed on to z.

    Args:
      model: with a codebook.
      params: of it.
      x: [B, H, W, C] images.
      commitment, beta_on: of vq.quantization_loss.
      learned: by gradient; otherwise only the encoder's term is there, commitment E (z - z_q)^2, and averages learn the
        codebook.
    """
    z = _apply(model, params, x, "encode")
    found = cast(Quantized, _apply(model, params, z, "quantize"))
    entries = _apply(model, params, found.indices, "entries")
    if learned:
        penalty = quantization_loss(z, entries, commitment=commitment, beta_on=beta_on)
    else:
        penalty = commitment * jnp.mean((z - jax.lax.stop_gradient(entries)) ** 2)
    return (_apply(model, params, found.z, "decode_quantized"), penalty), Passed(z, found.indices)


def of_levels(model: FSQModel, params: Any, x: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Passed]:
    """((decode(quantized z), 0), ...): nothing has to be learned of the grid."""
    z = _apply(model, params, x, "encode")
    found = cast(Quantized, _apply(model, params, z, "quantize"))
    return (_apply(model, params, found.z, "decode_quantized"), jnp.zeros(())), Passed(z, found.indices)


def _apply(model: Autoencoder, params: Any, x: jax.Array, method: str) -> Any:
    return model.apply({"params": params}, x, method=method)
