"""LPIPS: a distance between two images that agrees with people's better than the distance of their pixels does.

    d(a, b) = sum over l of the mean over h, w of  head_l . (f_l(a) / |f_l(a)| - f_l(b) / |f_l(b)|)^2

f_l are the features of a network after its rectifiers, |.| is over channels, head_l >= 0 was fitted to what people
said. Images are [B, H, W, 3] in [-1, 1].

Source: Zhang et al. 2018 (arXiv:1801.03924), eq. 1; version 0.1 of the published weights, which scales its input.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.models.backbones import VGG16, AlexNet, SqueezeNet
from ddpm_jax.models.resizing import half_pixel_resize
from ddpm_jax.names import choose

BACKBONES: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "vgg": (VGG16, (64, 128, 256, 512, 512)),
    "alex": (AlexNet, (64, 192, 384, 256, 256)),
    "squeeze": (SqueezeNet, (64, 128, 256, 384, 384, 512, 512)),
}
"""The network, and the channels of the layers that it returns."""
EPS = 1e-10
# ImageNet's mean and standard deviation for images in [0, 1], here for [-1, 1], as the weights were fitted.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """d(a, b) [B] for a and b [B, H, W, 3] in [-1, 1].

    Attributes:
      backbone: "vgg", "alex" or "squeeze".
    """

    backbone: str

    def setup(self) -> None:
        backbone, widths = choose("backbone", self.backbone, BACKBONES)
        self.net = backbone()
        self.heads = [self.param(f"head_{layer}", nn.initializers.ones, (width,)) for layer, width in enumerate(widths)]

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return sum((each.mean(axis=(1, 2)) for each in self.layers(a, b)), jnp.zeros(a.shape[0], a.dtype))

    def layers(self, a: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
        """head_l . (...)^2 [B, h, w] of each layer, at its own size."""
        if a.shape != b.shape or a.ndim != 4 or a.shape[-1] != 3:
            raise ValueError(f"two images must be [B, H, W, 3] both, got {list(a.shape)} and {list(b.shape)}")
        shift, scale = (jnp.asarray(numbers, a.dtype).reshape(1, 1, 1, 3) for numbers in (SHIFT, SCALE))
        found = []
        for taps, head in zip(self.net((jnp.concatenate((a, b)) - shift) / scale), self.heads, strict=True):
            of_a, of_b = jnp.split(unit(taps), 2)
            found.append((of_a - of_b) ** 2 @ head)
        return tuple(found)

    def spatial(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """The sum of the layers [B, H, W], each brought to the images' size bilinearly."""
        _, height, width, _ = a.shape
        maps = [half_pixel_resize(each[..., None], (height, width))[..., 0] for each in self.layers(a, b)]
        return sum(maps, jnp.zeros(a.shape[:3], a.dtype))


def unit(x: jax.Array) -> jax.Array:
    """x / (|x| + eps) over channels, the last axis; where x is 0 its gradient is 0, not the NaN of a root's."""
    squares = (x * x).sum(axis=-1, keepdims=True)
    known = squares > 0
    return jnp.where(known, x / (jnp.sqrt(jnp.where(known, squares, 1)) + EPS), 0)
