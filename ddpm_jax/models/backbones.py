"""VGG-16, AlexNet and SqueezeNet 1.1 up to their last features: the networks that LPIPS compares images with.

Each returns what is after the rectifiers that LPIPS takes, from the first to the last: a tuple of [B, h, w, C] of
images [B, H, W, 3] that are normalized as torchvision does. Layers have the numbers of torchvision's `features`.

Source: Simonyan and Zisserman 2014 (arXiv:1409.1556), table 1, D; Krizhevsky 2014 (arXiv:1404.5997); Iandola et al.
2016 (arXiv:1602.07360), table 1, with the changes of version 1.1.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

Taps = tuple[jax.Array, ...]
pool_2 = partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))
pool_3 = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2))


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions in five groups, each but the first after a max pool."""

    @nn.compact
    def __call__(self, x: jax.Array) -> Taps:
        taps, index = [], 0
        for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            if taps:
                x, index = pool_2(x), index + 1
            for _ in range(depth):
                x = nn.relu(nn.Conv(width, (3, 3), name=f"conv_{index}")(x))
                index += 2
            taps.append(x)
        return tuple(taps)


class AlexNet(nn.Module):
    """Five convolutions, the second and third after a max pool."""

    @nn.compact
    def __call__(self, x: jax.Array) -> Taps:
        a = nn.relu(nn.Conv(64, (11, 11), 4, padding=2, name="conv_0")(x))
        b = nn.relu(nn.Conv(192, (5, 5), name="conv_3")(pool_3(a)))
        c = nn.relu(nn.Conv(384, (3, 3), name="conv_6")(pool_3(b)))
        d = nn.relu(nn.Conv(256, (3, 3), name="conv_8")(c))
        e = nn.relu(nn.Conv(256, (3, 3), name="conv_10")(d))
        return a, b, c, d, e


class Fire(nn.Module):
    """1x1 to fewer channels, then 1x1 and 3x3 side by side."""

    squeeze: int
    expand: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(self.squeeze, (1, 1), name="squeeze")(x))
        narrow, wide = nn.Conv(self.expand, (1, 1), name="expand1x1"), nn.Conv(self.expand, (3, 3), name="expand3x3")
        return nn.relu(jnp.concatenate((narrow(x), wide(x)), axis=-1))


class SqueezeNet(nn.Module):
    """A convolution and eight fires; the max pools keep what is left at the right and below."""

    @nn.compact
    def __call__(self, x: jax.Array) -> Taps:
        x = nn.relu(nn.Conv(64, (3, 3), 2, padding="VALID", name="conv_0")(x))
        taps = [x]
        for index, (squeeze, expand) in {
            **{3: (16, 64), 4: (16, 64), 6: (32, 128), 7: (32, 128)},
            **{9: (48, 192), 10: (48, 192), 11: (64, 256), 12: (64, 256)},
        }.items():
            if index in (3, 6, 9):
                rest = [(0, (size - 3) % 2) for size in x.shape[1:3]]
                x = pool_3(x, padding=rest)
            x = Fire(squeeze, expand, name=f"fire_{index}")(x)
            if index not in (3, 6):
                taps.append(x)
        return tuple(taps)
