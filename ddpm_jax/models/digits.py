"""A small classifier of the embedded 8 x 8 digits, whose last hidden layer measures pictures of digits."""

import flax.linen as nn
import jax
import jax.numpy as jnp

SIZES = {"64": 64, "logits": 10}
"""Features by name: numbers of an image."""


class DigitsNet(nn.Module):
    """{"64": the last hidden layer, "logits": of the ten digits} of x [B, 8, 8, 1] in [-1, 1]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        x = nn.relu(nn.Conv(16, (3, 3), name="conv_1")(x))
        x = nn.relu(nn.Conv(24, (3, 3), 2, name="conv_2")(x))
        x = nn.relu(nn.Dense(64, name="hidden")(x.reshape(x.shape[0], -1)))
        return {"64": x, "logits": nn.Dense(10, name="classes")(x)}


def digits_input(images: jax.Array) -> jax.Array:
    """x / 127.5 - 1 of uint8 [B, 8, 8, 1].

    Raises:
      ValueError: pictures of another size. Raised while tracing.
    """
    if images.shape[1:] != (8, 8, 1):
        raise ValueError(f"features digits are of pictures of 8 x 8 x 1, got {' x '.join(map(str, images.shape[1:]))}")
    return images.astype(jnp.float32) / 127.5 - 1
