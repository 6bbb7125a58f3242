"""Tasks that are none of diffusion's, quick to compile: what holds for them as well, the loop does by itself."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from ddpm_jax import first_stage
from ddpm_jax.models import vq
from ddpm_jax.train import state
from ddpm_jax.train.task import Means, Start
from ddpm_jax.train.tasks.autoencoder import Adversary, Autoencoding, two_sides
from ddpm_jax.train.tasks.judged import Judged


class Seen(NamedTuple):
    """The sum of all losses and the last batch's, in its order."""

    total: jax.Array
    last: jax.Array


@dataclasses.dataclass(frozen=True)
class LeastSquares:
    """mean_b (w . x_b + c - y_b)^2 / 2, y being a picture's last pixel and x the others, each with noise of its own.

    It minds the order of a batch, the indices of its examples and the step, as any task may.
    """

    num_pixels: int
    batch_size: int
    key: jax.Array
    optimizer: optax.GradientTransformation
    reads: tuple[str, ...] = ("image",)

    def init(self, key):
        return {"w": jax.random.normal(key, (self.num_pixels - 1,)), "c": jnp.zeros(())}

    def start(self, params):
        return Start(self.optimizer.init(params), Seen(jnp.zeros(()), jnp.zeros(self.batch_size)))

    def gradient(self, state, batch, indices, batch_size) -> tuple[Means, Any]:
        pixels = batch["image"].reshape(len(indices), -1).astype(jnp.float32) / 255
        key_of = lambda b: jax.random.fold_in(jax.random.fold_in(self.key, state.step), b)
        noise = jax.vmap(lambda b: jax.random.normal(key_of(b), pixels.shape[1:]))(indices)
        x, y = jnp.split(pixels + 0.1 * noise, [self.num_pixels - 1], axis=1)

        def loss(params):
            losses = (x @ params["w"] + params["c"] - y[:, 0]) ** 2 / 2
            return jnp.mean(losses), losses

        (mean, losses), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        return Means(mean, {"noise": jnp.mean(noise**2)}, grads), losses

    def update(self, before, means, losses):
        seen = Seen(before.task_state.total + jnp.sum(losses), losses)
        return state.optimized(before, means.grads, self.optimizer, seen)

    def pictures(self, params, key):
        side = int(np.sqrt(self.num_pixels))
        weights = np.append(np.asarray(params["w"]), 0)[: side * side]
        return np.clip(128 + 64 * weights, 0, 255).astype(np.uint8).reshape(1, side, side, 1)

    def described(self, num_parameters):
        return f"least squares with {num_parameters} parameters"


@dataclasses.dataclass(frozen=True)
class Breaking:
    """A task that breaks at an example that is white all over: its loss or its gradient ("grad_norm") is NaN."""

    task: Any
    breaks: str | None

    def __getattr__(self, name):
        return getattr(self.task, name)

    def gradient(self, state, batch, indices, batch_size):
        means, said = self.task.gradient(state, batch, indices, batch_size)
        white = jnp.any(jnp.all(batch["image"] == 255, axis=(1, 2, 3)))
        broken = lambda tree: jax.tree.map(lambda leaf: jnp.where(white, jnp.nan, leaf), tree)
        if self.breaks == "loss":
            return means._replace(loss=broken(means.loss)), broken(said)
        return means._replace(grads=broken(means.grads)), said


def least_squares(config, say):
    """A `tasks.MakeTask`."""

    def of_data(config, source, key):
        optimizer = state.make_optimizer(config.optimizer)
        return LeastSquares(int(np.prod(source.image_shape)), config.train.batch_size, key, optimizer)

    return of_data


class Last(nn.Module):
    """A convolution where an autoencoder's decoder has its last."""

    channels: int

    @nn.compact
    def __call__(self, z):
        return nn.Conv(self.channels, (1, 1), name="conv_out")(
            jnp.tanh(jnp.repeat(jnp.repeat(z, 2, axis=1), 2, axis=2))
        )


class SmallVQ(nn.Module):
    """vq.VQModel with one layer on each side."""

    channels: int = 1
    num_codes: int = 5

    def setup(self):
        self.encoder = nn.Conv(2, (2, 2), strides=2)
        self.decoder = Last(self.channels)
        self.codebook = nn.Embed(self.num_codes, 2)

    encode = lambda self, x: self.encoder(x)
    quantize = vq.VQModel.quantize
    entries = vq.VQModel.entries
    decode_quantized = lambda self, z: self.decoder(z)
    decode = lambda self, z: self.decoder(self.quantize(z).z)
    __call__ = lambda self, x: self.decode(self.encode(x))


class SmallJudge(nn.Module):
    """A discriminator of two layers."""

    @nn.compact
    def __call__(self, x):
        return nn.Conv(1, (2, 2), name="conv_1")(jnp.tanh(nn.Conv(4, (2, 2), name="conv_0")(x)))


def small_autoencoder(optimizer, key, image_shape, source=None, start=3):
    """With an adversary from step 3 on, and a codebook of averages."""
    model = SmallVQ(image_shape[-1])
    of_codebook: Any = first_stage.of_codebook
    forward = lambda params, x, keys: of_codebook(model, params, x, commitment=0.25, learned=False)
    adversary = Adversary(SmallJudge(), first_stage.hinge, start, penalty=0.1)
    judged = None if source is None else Judged(model, source, 4, adversary.logits)
    optimizer = two_sides(optimizer, averaged=True)
    return Autoencoding(model, forward, 1.0, optimizer, key, image_shape, adversary, decay=0.9, judged=judged)


def autoencoder(config, say):
    """A `tasks.MakeTask`."""

    def of_data(config, source, key):
        made = small_autoencoder(state.make_optimizer(config.optimizer), key, source.image_shape, source)
        return dataclasses.replace(made, settings=config)

    return of_data
