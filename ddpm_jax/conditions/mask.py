"""What is known of an image, for in-painting."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax import images
from ddpm_jax.conditions.condition import Conditioning, Record


class Mask(NamedTuple):
    """The known pixels and the mask that says which they are, 1 for known; in training all but a random rectangle.

    Its edges are uniform among those of the pixels: two of each axis, no less than one pixel apart.

    Source: Nichol et al. 2021 (arXiv:2112.10741), section 4.3: the masked image and the mask as further channels.
    """

    reads: tuple[str, ...] = ("image",)

    def given(self, record: Record, key: jax.Array) -> Conditioning:
        """concat [H, W, C + 1]: the image times the mask, then the mask."""
        image = images.to_float(record["image"])
        key_rows, key_columns = jax.random.split(key)
        inside = lambda key, n: _between(key, n)
        hidden = inside(key_rows, image.shape[0])[:, None] & inside(key_columns, image.shape[1])[None, :]
        return known(image, ~hidden)

    def nothing(self, conditioning: Conditioning) -> Conditioning:
        """No pixel is known."""
        return {**conditioning, "concat": jnp.zeros_like(conditioning["concat"])}


def known(image: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """What an in-painting network is told: concat [..., H, W, C + 1].

    Args:
      image: [..., H, W, C] in [-1, 1].
      mask: [..., H, W] bool, True where the image is known.
    """
    mask = mask[..., None].astype(image.dtype)
    return {"concat": jnp.concatenate([image * mask, mask], axis=-1)}


def _between(key: jax.Array, n: int) -> jax.Array:
    """[n] bool: the places between two edges, uniform among all pairs of different ones."""
    key_first, key_second = jax.random.split(key)
    first, second = jax.random.randint(key_first, (), 0, n + 1), jax.random.randint(key_second, (), 0, n)
    second = second + (second >= first).astype(second.dtype)  # another one than the first
    places = jnp.arange(n)
    return (places >= jnp.minimum(first, second)) & (places < jnp.maximum(first, second))
