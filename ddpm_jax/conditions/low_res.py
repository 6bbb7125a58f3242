"""Low-resolution images, for super-resolution."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax import images
from ddpm_jax.conditions.condition import Conditioning, Record


class LowRes(NamedTuple):
    """The image averaged over factor x factor pixels, and noise of a standard deviation u ~ U(0, noise) on it.

    Source: Dhariwal & Nichol 2021 (arXiv:2105.05233), section 5 (upsampling); Ho et al. 2021 (arXiv:2106.15282),
    section 4.2 (Gaussian noise on the condition, here without telling the network how much).

    Attributes:
      factor: how many times smaller it is; it divides height and width.
      noise: the largest standard deviation of the noise, of images in [-1, 1].
    """

    factor: int
    noise: float = 0.0
    reads: tuple[str, ...] = ("image",)

    def given(self, record: Record, key: jax.Array) -> Conditioning:
        """float32 [H / factor, W / factor, C].

        Raises:
          ValueError: a factor that does not divide height and width. Raised while tracing.
        """
        image = images.to_float(record["image"])
        height, width, channels = image.shape
        if height % self.factor or width % self.factor:
            raise ValueError(f"condition.low_res_factor must divide height and width, {height} x {width}, "
                             f"got {self.factor}")  # fmt: skip
        blocks = image.reshape(height // self.factor, self.factor, width // self.factor, self.factor, channels)
        low_res = jnp.mean(blocks, axis=(1, 3))
        key_level, key_noise = jax.random.split(key)
        level = self.noise * jax.random.uniform(key_level, dtype=jnp.float32)
        return {"low_res": low_res + level * jax.random.normal(key_noise, low_res.shape, low_res.dtype)}

    def nothing(self, conditioning: Conditioning) -> Conditioning:
        """Grey, which is 0."""
        return {**conditioning, "low_res": jnp.zeros_like(conditioning["low_res"])}
