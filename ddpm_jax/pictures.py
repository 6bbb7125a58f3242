"""Pictures from a trained network, with any sampler, in batches.

Image i of a seed is drawn with the same noise whatever the number of images and the size of the batches are.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import guidance, images, samplers
from ddpm_jax.config.fields import at_least
from ddpm_jax.config.run import MOST_SEED
from ddpm_jax.distil import files as learned_files
from ddpm_jax.host.storage import Say
from ddpm_jax.process import ModelFn
from ddpm_jax.samplers.catalogue import make_table, make_table_at, other_variance
from ddpm_jax.samplers.configs.common import Preset
from ddpm_jax.trained import Trained

# ---------------------------------------------------------------------------------------------------------- options


def preset(
    trained: Trained,
    sampler: str | None,
    num_steps: int | None,
    grid: str | None,
    timesteps: Sequence[int] | None,
    say: Say = warnings.warn,
) -> Preset:
    """(table, denoiser) of a sampler of the catalogue, of a file, or of the network's own.

    Args:
      trained: the network.
      sampler: its name, or FILE.json of learn-sampler; None for the network's default.
      num_steps: how many steps, unless there are timesteps; None for the network's number, or as many as a file has.
      grid: where; None for the sampler's own grid.
      timesteps: or exactly where.
      say: is told if the sampler has another variance than the network was trained for.

    Raises:
      FileNotFoundError: no such file.
      ValueError: unknown names; both grid and timesteps; either with diffusers' own sampler or a file; a number of
        steps that the sampler has not; a file of another noise schedule.
    """
    if sampler is not None and learned_files.is_file(sampler):
        return Preset(_learned(trained, Path(sampler), num_steps, grid, timesteps), trained.denoiser)
    num_steps = trained.num_steps if num_steps is None else num_steps
    if grid is not None and timesteps is not None:
        raise ValueError(f"give either grid or timesteps, got {grid!r} and {list(timesteps)}")
    if sampler is None and trained.scheduler_config is not None:
        if grid is not None or timesteps is not None:
            given = f"grid {grid!r}" if grid is not None else f"timesteps {list(timesteps or ())}"
            raise ValueError(f"its own sampler comes with its own steps: give a sampler together with {given}")
        return trained.default_sampler(num_steps)
    name = trained.sampler if sampler is None else sampler
    if (other := other_variance(name, trained.variance)) is not None:
        say(other)
    if timesteps is None:
        table = make_table(name, trained.schedule, num_steps, grid, variance=trained.variance)
    else:
        table = make_table_at(name, trained.schedule, timesteps, variance=trained.variance)
    return Preset(table, trained.denoiser)


def _learned(
    trained: Trained,
    path: Path,
    num_steps: int | None,
    grid: str | None,
    timesteps: Sequence[int] | None,
) -> samplers.Table:
    learned = learned_files.load(path)
    for name, value in (("grid", grid), ("timesteps", timesteps)):
        if value is not None:
            raise ValueError(f"{path} has its own times, got {name} {value!r}")
    if num_steps not in (None, len(learned.calls)):
        raise ValueError(f"num_steps of {path} is {len(learned.calls)}, got {num_steps}")
    learned_files.check_schedule(learned, trained.schedule)
    return learned.table()


@dataclass(frozen=True)
class Labels:
    """Image i is of class i mod num_classes, or all are of one; no class where num_classes is None."""

    num_classes: int | None
    null: int | None  # the label that stands for no class
    one: int | None = None
    guidance_scale: float | None = None

    def of(self, first: int, n: int) -> np.ndarray | None:
        """[n] int32 for the images first, first + 1, ..."""
        if self.num_classes is None:
            return None
        index = first + np.arange(n)
        return np.asarray(index % self.num_classes if self.one is None else np.full(n, self.one), np.int32)


def labels(trained: Trained, label: int | None, guidance_scale: float | None) -> Labels:
    """Which labels the images get.

    Args:
      trained: the network.
      label: of all images; None for each class in turn.
      guidance_scale: of classifier-free guidance, u + scale (c - u).

    Raises:
      ValueError: a label for a network without classes, or none of its classes; guidance without a label that stands
        for no class.
    """
    num_classes, null = trained.conditions.num_classes, trained.conditions.null_label
    if label is not None and (num_classes is None or not 0 <= label < num_classes):
        allowed = "has no classes" if num_classes is None else f"has the labels 0 .. {num_classes - 1}"
        raise ValueError(f"the network {allowed}, got label {label}")
    if guidance_scale is not None and null is None:
        raise ValueError(f"the network has no label that stands for no class, got guidance_scale {guidance_scale}")
    return Labels(num_classes, null, label, guidance_scale)


# ---------------------------------------------------------------------------------------------------------- drawing


def pictures(
    trained: Trained, drawn_with: Preset, labels: Labels, num_images: int, batch_size: int, seed: int
) -> Iterator[np.ndarray]:
    """uint8 [B, H, W, C], batch after batch, num_images in all.

    Raises:
      ValueError: num_images, batch_size or seed out of range.
    """
    at_least("num_images", num_images)
    at_least("batch_size", batch_size)
    at_least("seed", seed, 0, most=MOST_SEED)
    return _pictures(trained, drawn_with, labels, num_images, min(batch_size, num_images), seed)


def _pictures(
    trained: Trained, drawn_with: Preset, labels: Labels, num_images: int, batch_size: int, seed: int
) -> Iterator[np.ndarray]:
    shape = (batch_size, *trained.image_shape)
    table, denoiser = drawn_with
    first_stage = trained.first_stage

    @jax.jit
    def draw(params: Any, decoder_params: Any, first_index: jax.Array, y: jax.Array | None) -> jax.Array:
        model_fn = trained.model_fn(params) if y is None else _guided(trained, params, y, labels)
        x_0 = samplers.sample(denoiser(model_fn), table, jax.random.key(seed), shape, first_index=first_index)
        return x_0 if first_stage is None else replace(first_stage, params=decoder_params).decode(x_0)

    params = jax.device_put((trained.params, first_stage and first_stage.params))
    for first in range(0, num_images, batch_size):
        x_0 = draw(*params, np.uint32(first), labels.of(first, batch_size))
        yield images.to_uint8(x_0)[: num_images - first]


def _guided(trained: Trained, params: Any, y: jax.Array, labels: Labels) -> ModelFn:
    conditional = trained.model_fn(params, y=y)
    if labels.guidance_scale is None:
        return conditional
    assert labels.null is not None
    unconditional = trained.model_fn(params, y=jnp.full_like(y, labels.null))
    return guidance.classifier_free(conditional, unconditional, scale=labels.guidance_scale)
