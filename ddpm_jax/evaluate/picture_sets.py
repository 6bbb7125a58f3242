"""Pictures that metrics are of: a set that somebody has, or one that is drawn as it is asked for."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ddpm_jax import data, pictures
from ddpm_jax.config.fields import at_least
from ddpm_jax.data.records import IMAGE, Source
from ddpm_jax.pictures import Labels, Prompts
from ddpm_jax.samplers.configs.common import Preset
from ddpm_jax.trained import Trained

LEAST = 2
"""A variance needs so many."""
READ_AT_ONCE = 64


@dataclass(frozen=True)
class PictureSet:
    """N pictures in an order.

    Attributes:
      where: what to call them in messages.
      known: all that their bits depend on, by names that a person reads; JSON values.
      count: N.
      shape: (H, W, C).
      batches: from the number of a picture, that one and those after it, uint8 [n, H, W, C] as they come.
    """

    where: str
    known: Mapping[str, Any]
    count: int
    shape: tuple[int, int, int]
    batches: Callable[[int], Iterator[np.ndarray]]


def of_source(source: Source, num_images: int | None, option: str, words: str | None = None) -> PictureSet:
    """The first pictures of a data set, in its order.

    Args:
      source: the set.
      num_images: how many; None for all.
      option: that asked for so many.
      words: what to call it; by default its name.

    Raises:
      ValueError: more than it has; fewer than LEAST.
    """
    where = source.name if words is None else words
    if num_images is not None:
        at_least(option, num_images, LEAST)
        if num_images > len(source):
            raise ValueError(f"{option} must be at most {len(source)}, the images of {where}, got {num_images}")
    count = len(source) if num_images is None else num_images
    if count < LEAST:
        raise ValueError(f"{where} has {count} image: metrics need at least {LEAST}")

    def batches(first: int) -> Iterator[np.ndarray]:
        read = lambda start: source.images(np.arange(start, min(start + READ_AT_ONCE, count)))
        return data.prefetch(read, range(first, count, READ_AT_ONCE))

    known = {"fingerprint": ", ".join(data.fingerprint(source, (IMAGE,), count).values())}
    return PictureSet(where, known, count, source.image_shape, batches)


def drawn(
    trained: Trained,
    drawn_with: Preset,
    labels: Labels | Prompts,
    num_images: int,
    batch_size: int,
    seed: int,
    *,
    where: str,
    known: Mapping[str, Any],
    decoded: int | None = None,
) -> PictureSet:
    """Pictures of a network, drawn again in the same batches wherever they begin.

    Args:
      trained: the network.
      drawn_with: its sampler.
      labels: what the pictures are told.
      num_images: N.
      batch_size: drawn at once.
      seed: of all randomness.
      where, known: as of a PictureSet.
      decoded: as of pictures.batches.

    Raises:
      ValueError: numbers out of range.
    """
    at_least("--num-images", num_images, LEAST)
    batch_size = min(batch_size, num_images)
    pictures.check_numbers(trained, num_images, batch_size, seed, decoded)

    def batches(first: int) -> Iterator[np.ndarray]:
        begin = first // batch_size * batch_size  # the last digits of what a network says depend on the batch
        numbers = num_images, batch_size, seed, begin
        for found in pictures.batches(trained, drawn_with, labels, *numbers, jax.local_devices(), decoded):
            yield pictures.finite(found, hint="").pictures[max(0, first - begin) :]
            begin += len(found.pictures)

    return PictureSet(where, known, num_images, trained.picture_shape, batches)
