"""x_0 of a training: the images themselves, or their latents, read as they were encoded or encoded at every step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp

from ddpm_jax import images, opening
from ddpm_jax.config.run import Config
from ddpm_jax.data import Source
from ddpm_jax.data.latents import read_description
from ddpm_jax.data.records import IMAGE, LATENT, LOG_VARIANCE
from ddpm_jax.host.storage import Say
from ddpm_jax.keys import folded
from ddpm_jax.models.autoencoder import DiagonalGaussian
from ddpm_jax.runs import first_stage_weights
from ddpm_jax.trained import FirstStage, drawn

POSTERIOR = 4
"""Folded into the key of an example: the draw from its posterior."""

Shape = tuple[int, int, int]


class Clean(Protocol):
    """What a batch is diffused as."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The features of a record that x_0 is of."""
        ...

    @property
    def stage(self) -> FirstStage | None:
        """The autoencoder in whose latents it is."""
        ...

    def x_0(self, batch: Mapping[str, jax.Array], keys: jax.Array) -> jax.Array:
        """[b, ...] of a batch whose examples have these keys [b]."""
        ...


@dataclass(frozen=True)
class Pixels:
    """Images in [-1, 1]."""

    reads: tuple[str, ...] = (IMAGE,)
    stage: FirstStage | None = None

    def x_0(self, batch: Mapping[str, jax.Array], keys: jax.Array) -> jax.Array:
        return images.to_float(batch[IMAGE])


PIXELS = Pixels()


@dataclass(frozen=True)
class Latents:
    """(z - shift) scale for z ~ q(z | x), drawn anew at every step from what was encoded once."""

    stage: FirstStage
    reads: tuple[str, ...]

    def x_0(self, batch: Mapping[str, jax.Array], keys: jax.Array) -> jax.Array:
        z = batch[LATENT]
        if LOG_VARIANCE in self.reads:
            z = drawn(DiagonalGaussian(z, batch[LOG_VARIANCE]), folded(keys, POSTERIOR))
        return self.stage.scaled(z)


@dataclass(frozen=True)
class Encoded:
    """As Latents, encoded at every step: of images that are flipped, say."""

    stage: FirstStage
    reads: tuple[str, ...] = (IMAGE,)

    def x_0(self, batch: Mapping[str, jax.Array], keys: jax.Array) -> jax.Array:
        return self.stage.encode_each(images.to_float(batch[IMAGE]), folded(keys, POSTERIOR))


def of_source(config: Config, source: Source, say: Say) -> Clean:
    """What a configuration diffuses of its data.

    Raises:
      FileNotFoundError, ValueError: as opening.first_stage_of and first_stage_weights.read; settings that are of images
        where there are latents.
    """
    place = config.data.encode_with
    if source.autoencoder is None:
        if place is None:
            return PIXELS
        stage = opening.first_stage_of(place, say)[0]
        try:
            stage.check_fits(source.image_shape)
        except ValueError as error:
            raise ValueError(f"data.encode_with {place}: {error}") from None
        return _checked(config, Encoded(stage))
    if place is not None:
        raise ValueError(f"data.encode_with {place} is for images, and {source.name} holds latents")
    if config.data.flip:
        raise ValueError(
            f"data.flip is for images, and {source.name} holds latents: give the images and --data.encode-with"
        )
    said = read_description(source.autoencoder)
    stage = first_stage_weights.read(source.autoencoder, said.weights)
    return _checked(config, Latents(stage, tuple(name for name in (LATENT, LOG_VARIANCE) if name in source.spec)))


def _checked(config: Config, clean: Clean) -> Clean:
    if config.sample.clip is not None:
        raise ValueError(
            f"sample.clip {config.sample.clip:g} bounds images, and latents have no bounds: give --sample.clip None"
        )
    if of_images := [name for name in config.condition.names if name != "class"]:
        raise ValueError(f"--condition {of_images[0]} is made of images, and this run is on latents")
    return clean


def shape_of(config: Config, source: Source, say: Say) -> Shape:
    """(H, W, C) of what is trained on: of the images, or of what they are encoded to at every step.

    Raises:
      FileNotFoundError, ValueError: as of_source.
    """
    return source.image_shape if config.data.encode_with is None else shape_in(of_source(config, source, say), source)


def shape_in(x_0: Clean, source: Source) -> Shape:
    """(H, W, C) of x_0: as the source has it, or as it is encoded to."""
    if x_0.stage is None or source.autoencoder is not None:
        return source.image_shape
    return jax.eval_shape(x_0.stage.encode, jnp.zeros((1, *source.image_shape))).shape[1:]
