"""FID's Inception-v3: the TensorFlow graph of 2015 that Heusel et al. 2017 (arXiv:1706.08500) measured with.

It differs from the Inception-v3 of torchvision and Keras in its numbers, in 1008 classes, in average pools that do not
count the zeros around an image (blocks A, C and the first E), and in a max pool in the last block E.

Each convolution is relu(x * kernel + bias): its batch normalization, with the statistics it was trained to, is folded
into the two (interop.features.inception). Layers have the names of the graph. Images are [B, H, W, 3], 299 x 299 as
trained, scaled to about [-1, 1]: see `tensorflow_input` and `pytorch_fid_input`.

Source: Szegedy et al. 2015 (arXiv:1512.00567), section 6, with the sizes of the published graph.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.models.resizing import half_pixel_resize, tensorflow_resize

SIZE = 299
NUM_CLASSES = 1008
SPATIAL = 7
"""Channels that sFID takes, of 17 x 17 positions: Nash et al. 2021 (arXiv:2103.03841), as ADM's evaluator has it."""
SIZES = {
    **{"64": 64, "192": 192, "768": 768, "2048": 2048, "spatial": 17 * 17 * SPATIAL},
    **{"logits_unbiased": NUM_CLASSES, "logits": NUM_CLASSES},
}
"""Features by name: numbers of an image of 299 x 299."""


class Conv(nn.Module):
    """relu(x * kernel + bias)."""

    features: int
    size: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = nn.Conv(self.features, self.size, self.stride, self.padding, name="conv")
        return nn.relu(conv(x))


conv1x1 = partial(Conv, size=(1, 1))
conv3x3 = partial(Conv, size=(3, 3))
halve3x3 = partial(Conv, size=(3, 3), stride=2, padding="VALID")
max_pool = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2))
same_max_pool = partial(nn.max_pool, window_shape=(3, 3), strides=(1, 1), padding="SAME")
same_average_pool = partial(nn.avg_pool, window_shape=(3, 3), strides=(1, 1), padding="SAME", count_include_pad=False)


def chain(x: jax.Array, *layers: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """layers[-1](... layers[0](x))."""
    for layer in layers:
        x = layer(x)
    return x


class BlockA(nn.Module):
    """1x1, 5x5, 3x3 after 3x3, and the average pool, side by side."""

    pool_features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        branches = (
            conv1x1(64, name="branch1x1")(x),
            chain(x, conv1x1(48, name="branch5x5_1"), Conv(64, (5, 5), name="branch5x5_2")),
            chain(
                x,
                conv1x1(64, name="branch3x3dbl_1"),
                conv3x3(96, name="branch3x3dbl_2"),
                conv3x3(96, name="branch3x3dbl_3"),
            ),
            chain(x, same_average_pool, conv1x1(self.pool_features, name="branch_pool")),
        )
        return jnp.concatenate(branches, axis=-1)


class BlockB(nn.Module):
    """35 x 35 to 17 x 17."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        double = chain(
            x,
            conv1x1(64, name="branch3x3dbl_1"),
            conv3x3(96, name="branch3x3dbl_2"),
            halve3x3(96, name="branch3x3dbl_3"),
        )
        return jnp.concatenate((halve3x3(384, name="branch3x3")(x), double, max_pool(x)), axis=-1)


class BlockC(nn.Module):
    """7x7 as 1x7 and 7x1, once and twice; also returns the 1x1 branch, of which sFID takes channels."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        wide, tall = partial(Conv, size=(1, 7)), partial(Conv, size=(7, 1))
        branch1x1 = conv1x1(192, name="branch1x1")(x)
        branches = (
            branch1x1,
            chain(
                x,
                conv1x1(self.width, name="branch7x7_1"),
                wide(self.width, name="branch7x7_2"),
                tall(192, name="branch7x7_3"),
            ),
            chain(
                x,
                conv1x1(self.width, name="branch7x7dbl_1"),
                tall(self.width, name="branch7x7dbl_2"),
                wide(self.width, name="branch7x7dbl_3"),
                tall(self.width, name="branch7x7dbl_4"),
                wide(192, name="branch7x7dbl_5"),
            ),
            chain(x, same_average_pool, conv1x1(192, name="branch_pool")),
        )
        return jnp.concatenate(branches, axis=-1), branch1x1


class BlockD(nn.Module):
    """17 x 17 to 8 x 8."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        branches = (
            chain(x, conv1x1(192, name="branch3x3_1"), halve3x3(320, name="branch3x3_2")),
            chain(
                x,
                conv1x1(192, name="branch7x7x3_1"),
                Conv(192, (1, 7), name="branch7x7x3_2"),
                Conv(192, (7, 1), name="branch7x7x3_3"),
                halve3x3(192, name="branch7x7x3_4"),
            ),
            max_pool(x),
        )
        return jnp.concatenate(branches, axis=-1)


class BlockE(nn.Module):
    """3x3 as 1x3 beside 3x1, and 1x1 of the pooled."""

    pool: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        once = conv1x1(384, name="branch3x3_1")(x)
        twice = chain(x, conv1x1(448, name="branch3x3dbl_1"), conv3x3(384, name="branch3x3dbl_2"))
        branches = (
            conv1x1(320, name="branch1x1")(x),
            Conv(384, (1, 3), name="branch3x3_2a")(once),
            Conv(384, (3, 1), name="branch3x3_2b")(once),
            Conv(384, (1, 3), name="branch3x3dbl_3a")(twice),
            Conv(384, (3, 1), name="branch3x3dbl_3b")(twice),
            chain(x, self.pool, conv1x1(192, name="branch_pool")),
        )
        return jnp.concatenate(branches, axis=-1)


class Classes(nn.Module):
    """(x @ kernel, x @ kernel + bias)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", nn.initializers.zeros, (x.shape[-1], NUM_CLASSES))
        bias = self.param("bias", nn.initializers.zeros, (NUM_CLASSES,))
        unbiased = x @ kernel
        return unbiased, unbiased + bias[None]


class Inception(nn.Module):
    """Features by name for x [B, H, W, 3], H and W at least 75.

    Returns a mapping: "64", "192", "768", "2048" [B, .] are means over all positions, of the two max pools, of the last
    block of 17 x 17 and of the last of all; "spatial" [B, 17 * 17 * 7] the first channels of Mixed_6d's 1x1 branch, in
    the order height, width, channel; "logits_unbiased" [B, 1008] = "2048" @ kernel, and "logits" with the bias, too.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        mean = lambda y: y.mean(axis=(1, 2))
        out = {}
        x = halve3x3(32, name="Conv2d_1a_3x3")(x)
        x = conv3x3(32, padding="VALID", name="Conv2d_2a_3x3")(x)
        x = max_pool(conv3x3(64, name="Conv2d_2b_3x3")(x))
        out["64"] = mean(x)
        x = conv1x1(80, name="Conv2d_3b_1x1")(x)
        x = max_pool(conv3x3(192, padding="VALID", name="Conv2d_4a_3x3")(x))
        out["192"] = mean(x)
        for letter, pool_features in zip("bcd", (32, 64, 64), strict=True):
            x = BlockA(pool_features, name=f"Mixed_5{letter}")(x)
        x = BlockB(name="Mixed_6a")(x)
        for letter, width in zip("bcde", (128, 160, 160, 192), strict=True):
            x, branch1x1 = BlockC(width, name=f"Mixed_6{letter}")(x)
            if letter == "d":
                out["spatial"] = branch1x1[..., :SPATIAL].reshape(x.shape[0], -1)
        out["768"] = mean(x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(same_average_pool, name="Mixed_7b")(x)
        x = BlockE(same_max_pool, name="Mixed_7c")(x)
        out["2048"] = mean(x)
        out["logits_unbiased"], out["logits"] = Classes(name="fc")(out["2048"])
        return out


def tensorflow_input(images: jax.Array) -> jax.Array:
    """(resize(x) - 128) / 128 at 299 x 299, of uint8 [B, H, W, 3]: what the graph itself does; torch-fidelity, ADM."""
    resized = tensorflow_resize(images.astype(jnp.float32), (SIZE, SIZE))
    return (resized - 128) / 128


def pytorch_fid_input(images: jax.Array) -> jax.Array:
    """2 resize(x / 255) - 1 at 299 x 299, half-pixel bilinear, of uint8 [B, H, W, 3]: what pytorch-fid does."""
    resized = half_pixel_resize(images.astype(jnp.float32) / 255, (SIZE, SIZE))
    return 2 * resized - 1
