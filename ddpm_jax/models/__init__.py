"""Networks. One call signature: model(x_t, t, **conditioning)."""

from collections.abc import Callable
from typing import Any, cast

import jax
from flax import linen as nn

from .autoencoder import AutoencoderKL as AutoencoderKL
from .classifier import Classifier as Classifier
from .clip import CLIPText as CLIPText
from .dit import DiT as DiT
from .glide import Glide as Glide
from .skip_unet import SkipUNet as SkipUNet
from .unet import UNet as UNet
from .uvit import UViT as UViT
from .vq import VQModel as VQModel


def bind(model: nn.Module, params: Any, **options: Any) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """model_fn(x_t, t) = model(x_t, t, **options) with these parameters."""
    return lambda x_t, t: cast(jax.Array, model.apply({"params": params}, x_t, t, **options))
