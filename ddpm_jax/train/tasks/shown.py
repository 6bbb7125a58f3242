"""What a conditional network is told for the pictures of a training, and how they are shown."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ddpm_jax import images
from ddpm_jax.conditions import Condition
from ddpm_jax.data import Source
from ddpm_jax.models import bind
from ddpm_jax.schedules import Schedule
from ddpm_jax.train.state import Params


@dataclass(frozen=True)
class Shown:
    """What the network is told of N examples, and what it is told instead to see whether it listens.

    Attributes:
      model: the network.
      told, otherwise: trees of arrays [N, ...].
      x_t, t: noisy images and their time.
    """

    model: nn.Module
    told: Mapping[str, jax.Array]
    otherwise: Mapping[str, jax.Array]
    x_t: jax.Array
    t: jax.Array

    def dependence(self, params: Params) -> float:
        """|f(x_t, told) - f(x_t, otherwise)| / |f(x_t, told)|, norms over all examples; 1 where both are 0."""
        difference, size = jax.jit(self._norms)(params)
        return float(difference / size) if size > 0 else 1.0

    def _norms(self, params: Params) -> tuple[jax.Array, jax.Array]:
        say = lambda told: bind(self.model, params, **told)(self.x_t, self.t)
        answer = say(self.told)
        return jnp.linalg.norm(jnp.ravel(answer - say(self.otherwise))), jnp.linalg.norm(jnp.ravel(answer))

    def beside(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W', C]: each picture, on its left the images that the network was told, if any."""
        height, channels = pictures.shape[1], pictures.shape[-1]
        parts = []
        if "low_res" in self.told:
            low_res = images.to_uint8(self.told["low_res"])
            times = height // low_res.shape[1]
            parts.append(low_res.repeat(times, axis=1).repeat(times, axis=2))
        if "concat" in self.told:
            parts.append(images.to_uint8(self.told["concat"][..., :channels]))
        return np.concatenate([*parts, pictures], axis=2)


def show(
    condition: Condition,
    source: Source,
    num_images: int,
    shape: tuple[int, int, int],
    key: jax.Array,
    model: nn.Module,
    schedule: Schedule,
    drop: float | None,
) -> Shown:
    """Of the first examples; where the class is all that is told, image i is of class i, counted around.

    Instead it is told nothing, if the training has that, else what belongs to another example.
    """
    rows = np.arange(num_images) % len(source)
    record = source.read(rows, condition.reads)
    if condition.reads == ("label",):
        record = {"label": np.asarray(np.arange(num_images) % len(source.classes or (0,)), np.int32)}
    key_given, key_noise = jax.random.split(jax.random.fold_in(key, num_images))
    record = {name: jnp.asarray(values) for name, values in record.items()}
    told = dict(jax.vmap(condition.given)(record, jax.random.split(key_given, num_images)))
    nothing = lambda: dict(jax.vmap(condition.nothing)(told))
    another = lambda: {name: jnp.roll(value, 1, axis=0) for name, value in told.items()}
    x_t = jax.random.normal(key_noise, (num_images, *shape))
    t = jnp.full((num_images,), schedule.timesteps[schedule.num_timesteps // 2], jnp.float32)
    return Shown(model, told, nothing() if drop else another(), x_t, t)
