"""A use of a trained network on many images, batch after batch, each batch by the same compiled program."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from ddpm_jax import images, keys
from ddpm_jax.config.fields import at_least, check_batch_size
from ddpm_jax.config.run import MOST_SEED
from ddpm_jax.guided import Guidance, denoise_of, parameters
from ddpm_jax.pictures import Prompts
from ddpm_jax.pictures import Told as Asked
from ddpm_jax.process import ModelFn
from ddpm_jax.samplers import Denoise, Remembering
from ddpm_jax.trained import FirstStage, Trained

Use = Callable[..., Any]
"""use(told, key, first_index, *arrays [B, ...]): what is done with a batch whose first example has this index.

told is a `Told`: told(**conditioning) the denoiser of the network that is told so much beside its label or text.
"""

POSTERIOR = np.uint32(2**32 - 3)
"""The "row" whose key a draw from a picture's posterior comes from; see samplers.run."""


@dataclass(frozen=True)
class Told:
    """A network with all that a batch is told, and the way from pictures to what it denoises and back.

    Attributes:
      denoise: of conditioning by name, low_res= or concat=.
      stage: the autoencoder in whose latents it denoises; None for none.
      key: of all samples.
      first_index: the index of the batch's first one.
    """

    denoise: Callable[..., Denoise | Remembering]
    stage: FirstStage | None
    key: jax.Array
    first_index: jax.Array

    def __call__(self, **conditioning: jax.Array) -> Denoise | Remembering:
        return self.denoise(**conditioning)

    def encoded(self, x: jax.Array, row: np.uint32 = POSTERIOR) -> jax.Array:
        """x_0 of pictures in [-1, 1]: these, or latents of them, each drawn from its posterior by its key of a row."""
        if self.stage is None:
            return x
        of_each = keys.example_keys(self.key, self.first_index, len(x))
        return self.stage.encode_each(x, keys.folded(of_each, row))

    def decoded(self, x_0: jax.Array) -> jax.Array:
        """Pictures in [-1, 1] of x_0."""
        return x_0 if self.stage is None else self.stage.decode(x_0)


def checked_label(trained: Trained, label: int | None) -> int | None:
    """The label that the network is told: the one given, or the one that stands for no class.

    Raises:
      ValueError: a label for a network without classes, or none of its classes; no label for a network that needs one.
    """
    num_classes, null = trained.conditions.num_classes, trained.conditions.null_label
    if num_classes is None:
        if label is not None:
            raise ValueError(f"--label is for networks with classes, and this one has none, got {label}")
        return None
    if label is None and null is None:
        raise ValueError(f"the network has {num_classes} classes and none that stands for no class: give --label")
    if label is not None and not 0 <= label < num_classes:
        raise ValueError(f"--label must be one of the network's labels 0 .. {num_classes - 1}, got {label}")
    return null if label is None else label


def check_pixels(trained: Trained, use: str) -> None:
    """Whether it denoises images themselves.

    Raises:
      ValueError: it denoises latents.
    """
    if trained.first_stage is not None:
        raise ValueError(f"the network denoises latents, and {use} is for networks that denoise pictures themselves")


def check_numbers(batch_size: int, seed: int) -> None:
    """Raises ValueError: one of them out of range."""
    at_least("--batch-size", batch_size)
    at_least("--seed", seed, 0, most=MOST_SEED)


def computed(
    trained: Trained,
    denoiser: Callable[[ModelFn], Denoise],
    use: Use,
    arrays: Sequence[np.ndarray],
    *,
    batch_size: int,
    seed: int,
    label: int | None = None,
    text: Prompts | None = None,
    guided: Guidance | None = None,
    first: int = 0,
) -> Iterator[Any]:
    """use(told, key of the seed, index, *arrays) of each batch, as NumPy arrays [b, ...].

    The last batch is filled up with its last example, so that it needs no program of its own; what that gives is cut.

    Args:
      trained: the network.
      denoiser: of its output, as from a Preset.
      use: what is done; traced once.
      arrays: [N, ...] each, N at least 1.
      batch_size: B.
      seed: of all randomness.
      label: that the network is told of all; from `checked_label`.
      text: that it is told of all.
      guided: how; its numbers come with the table that is used, from guided.on.
      first: begin with this example, a multiple of B.

    Raises:
      ValueError: batch_size or seed out of range.
    """
    n = len(arrays[0])
    check_numbers(batch_size, seed)
    batch_size = min(batch_size, n)
    check_batch_size("--batch-size", batch_size, trained.picture_shape)
    of_all = Asked({} if label is None else {"y": np.full(batch_size, label, np.int32)})
    of_all = of_all if text is None else text.told(0, batch_size)

    @jax.jit
    def run(params: Any, of_all: Asked, first_index: jax.Array, *parts: jax.Array) -> Any:
        (own, of_stage), key = params, keys.make(seed)

        def denoise(**more: jax.Array) -> Denoise | Remembering:
            otherwise = None if of_all.otherwise is None else of_all.otherwise | more
            return denoise_of(trained, guided, own, of_all.told | more, denoiser, otherwise)

        stage = None if trained.first_stage is None else replace(trained.first_stage, params=of_stage)
        return use(Told(denoise, stage, key, first_index), key, first_index, *parts)

    params = jax.device_put((parameters(trained, guided), trained.first_stage and trained.first_stage.params))
    for start in range(first, n, batch_size):
        indices = np.minimum(np.arange(start, start + batch_size), n - 1)
        found = run(params, of_all, np.uint32(start), *(array[indices] for array in arrays))
        yield jax.tree.map(lambda leaf, start=start: np.asarray(leaf)[: n - start], found)


def as_pictures(found: Iterator[np.ndarray], first: int = 0) -> Iterator[np.ndarray]:
    """Images x_0, batch after batch, as uint8.

    Args:
      found: the batches.
      first: the number of the first image.

    Raises:
      FloatingPointError: an image that is not finite.
    """
    for x_0 in found:
        if len(bad := images.not_finite(x_0)):
            raise FloatingPointError(
                f"{len(bad)} of {len(x_0)} pictures have NaN or infinity, first picture {bad[0] + first}: the sampler "
                "diverges, or numbers in the network overflow"
            )
        yield images.to_uint8(x_0)
        first += len(x_0)
