"""Networks. One call signature: model(x_t, t, **conditioning)."""

from collections.abc import Callable
from typing import Any, cast

import jax
from flax import linen as nn

from ddpm_jax.models.autoencoder import AutoencoderKL as AutoencoderKL
from ddpm_jax.models.classifier import Classifier as Classifier
from ddpm_jax.models.clip import CLIPText as CLIPText
from ddpm_jax.models.dit import DiT as DiT
from ddpm_jax.models.glide import Glide as Glide
from ddpm_jax.models.ldm_bert import LDMBert as LDMBert
from ddpm_jax.models.noised_clip import NoisedCLIP as NoisedCLIP
from ddpm_jax.models.skip_unet import SkipUNet as SkipUNet
from ddpm_jax.models.unet import UNet as UNet
from ddpm_jax.models.uvit import UViT as UViT
from ddpm_jax.models.vq import VQModel as VQModel


def bind(model: nn.Module, params: Any, **options: Any) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """model_fn(x_t, t) = model(x_t, t, **options) with these parameters."""
    return lambda x_t, t: cast(jax.Array, model.apply({"params": params}, x_t, t, **options))
