"""p(x_0 | a smaller picture of it), by a network that sees the smaller one, enlarged, beside x_t.

Source: Ho et al. 2022 (arXiv:2106.15282), section 2; Dhariwal & Nichol 2021 (arXiv:2105.05233), section 4.4.
"""

import jax

from ddpm_jax import samplers
from ddpm_jax.models import UNet
from ddpm_jax.samplers import Table
from ddpm_jax.trained import Trained
from ddpm_jax.uses.batches import Told


def check_network(trained: Trained) -> None:
    """Whether the network sees a picture as large as x_t beside it, and needs nothing more than a label.

    Raises:
      ValueError: it does not.
    """
    channels, model = trained.image_shape[-1], trained.model
    seen = trained.params["conv_in"]["kernel"].shape[2] if isinstance(model, UNet) else channels
    if seen == channels:
        raise ValueError("upscale needs a network that sees a smaller picture beside x_t (low_res=), got one without")
    if seen != 2 * channels or len(trained.conditions.others) > 1:
        raise ValueError(
            f"upscale gives a picture of {channels} channels and a label, and the network needs "
            f"{' and '.join(trained.conditions.others)}, of {seen - channels} channels beside the image"
        )


def upscale(
    told: Told,
    table: Table,
    key: jax.Array,
    low_res: jax.Array,
    image_shape: tuple[int, int, int],
    *,
    first_index: int | jax.Array = 0,
) -> jax.Array:
    """x_0 [B, H, W, C] for smaller pictures [B, h, w, C].

    Args:
      told: told(low_res=low_res) is the denoiser that sees them; as of `batches.computed`, or
        lambda **more: denoiser(trained.model_fn(**more)).
      table: of any sampler.
      key: of all samples.
      low_res: images in [-1, 1]; the network enlarges them bilinearly.
      image_shape: (H, W, C).
      first_index: the index of the first one among all.
    """
    shape = (len(low_res), *image_shape)
    return samplers.sample(told(low_res=low_res), table, key, shape, first_index=first_index)
