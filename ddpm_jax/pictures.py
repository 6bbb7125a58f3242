"""Pictures from a trained network, with any sampler, in batches.

Image i of a seed is drawn with the same noise whatever the number of images and the size of the batches are.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax import images, keys, samplers
from ddpm_jax.config.fields import at_least, check_batch_size
from ddpm_jax.config.run import MOST_SEED
from ddpm_jax.distil import files as learned_files
from ddpm_jax.guided import Guidance, denoise_of, parameters
from ddpm_jax.host.storage import Say
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
      say: is told if the sampler has another variance than the network was trained for, or was learned on another one.

    Raises:
      FileNotFoundError: no such file.
      ValueError: unknown names; timesteps beside a grid or a number of steps; either with diffusers' own sampler or a
        file; a number of steps that the sampler has not; a file of another noise schedule.
    """
    for name, value in (("--grid", grid), ("--num-steps", num_steps)):
        if value is not None and timesteps is not None:
            raise ValueError(f"give either {name} or --timesteps, got {value!r} and {list(timesteps)}")
    if sampler is not None and learned_files.is_file(sampler):
        return Preset(_learned(trained, Path(sampler), num_steps, grid, timesteps, say), trained.denoiser)
    num_steps = trained.num_steps if num_steps is None else num_steps
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
    say: Say,
) -> samplers.Table:
    learned = learned_files.load(path)
    for name, value in (("grid", grid), ("timesteps", timesteps)):
        if value is not None:
            raise ValueError(f"{path} has its own times, got {name} {value!r}")
    if num_steps not in (None, len(learned.calls)):
        raise ValueError(f"num_steps of {path} is {len(learned.calls)}, got {num_steps}")
    learned_files.check_schedule(learned, trained.schedule)
    if (other := learned_files.other_network(learned, trained)) is not None:
        say(f"{path} was learned on another network: {other}; how well it does here is not known")
    return learned.table()


class Told(NamedTuple):
    """Arrays [n, ...] that a network is told beside x_t and t, and what instead where guidance asks; None for what
    stands for nothing."""

    told: dict[str, Any]
    otherwise: dict[str, Any] | None = None


@dataclass(frozen=True)
class Labels:
    """Image i is of class chosen[i mod k], or of one of these at random; of all classes where none is chosen; of none
    where num_classes is None."""

    num_classes: int | None
    null: int | None  # the label that stands for no class
    chosen: tuple[int, ...] = ()
    guidance: Guidance | None = None
    at_random: int | None = None  # the seed of these classes; None for in turn

    def told(self, first: int, n: int) -> Told:
        """What the network is told of the images first, first + 1, ..., first + n - 1."""
        y = self.of(first, n)
        return Told({} if y is None else {"y": y})

    def of(self, first: int, n: int) -> np.ndarray | None:
        """[n] int32 for the images first, first + 1, ..."""
        if self.num_classes is None:
            return None
        allowed = np.asarray(self.chosen or range(self.num_classes), np.int32)
        if self.at_random is None:
            return allowed[(first + np.arange(n)) % len(allowed)]
        key = jax.random.fold_in(keys.make(self.at_random), OF_LABELS)
        drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(allowed)))(keys.example_keys(key, first, n))
        return allowed[np.asarray(drawn)]

    @property
    def described(self) -> str:
        """In words."""
        if self.num_classes is None:
            return "none"
        if len(self.chosen) == 1:
            return f"class {self.chosen[0]}"
        which = f"classes {', '.join(map(str, self.chosen))}" if self.chosen else "all classes"
        return f"{which}, each as often (in turn)" if self.at_random is None else f"{which}, each at random"


@dataclass(frozen=True)
class Prompts:
    """Image i is told texts[i mod k].

    Attributes:
      texts: k of them.
      contexts: [k, L, C], of each.
      negative: the text that guidance leads away from.
      negative_context: [L, C], of it.
      guidance: how; None for no guidance.
    """

    texts: tuple[str, ...]
    contexts: np.ndarray
    negative: str
    negative_context: np.ndarray
    guidance: Guidance | None = None

    def told(self, first: int, n: int) -> Told:
        """As of Labels."""
        instead = np.broadcast_to(self.negative_context, (n, *self.negative_context.shape))
        return Told({"context": self.contexts[(first + np.arange(n)) % len(self.texts)]}, {"context": instead})

    def of(self, first: int, n: int) -> None:
        """No labels."""

    @property
    def described(self) -> str:
        """In words."""
        away = f", away from {self.negative!r}" if self.negative and self.guidance is not None else ""
        if len(self.texts) == 1:
            return f"the text {self.texts[0]!r}{away}"
        return f"{len(self.texts)} texts, each as often (in turn), the first {self.texts[0]!r}{away}"


OF_LABELS = 2**32 - 1
"""Folded into the key of a seed: the number of no image."""


def labels(
    trained: Trained, chosen: Sequence[int] = (), guided: Guidance | None = None, at_random: int | None = None
) -> Labels:
    """Which labels the images get.

    Args:
      trained: the network.
      chosen: in turn; each class in turn where there are none.
      guided: how; None for no guidance.
      at_random: the seed with which image i's is drawn, one as likely as another; None for in turn.

    Raises:
      ValueError: labels for a network without classes, or none of its classes; guidance without a label that stands
        for no class, or with numbers out of range.
    """
    num_classes, null = trained.conditions.num_classes, trained.conditions.null_label
    for label in chosen:
        if num_classes is None or not 0 <= label < num_classes:
            allowed = "has no classes" if num_classes is None else f"has the labels 0 .. {num_classes - 1}"
            raise ValueError(f"the network {allowed}, got label {label}")
    if at_random is not None and num_classes is None:
        raise ValueError("--random-labels is for networks with classes, and this one has none")
    if guided is not None:
        guided.check(trained)
    return Labels(num_classes, null, tuple(chosen), guided, at_random)


def prompts(
    trained: Trained,
    texts: Sequence[str],
    negative: str = "",
    guided: Guidance | None = None,
    say: Say = warnings.warn,
) -> Prompts:
    """Which texts the images are told, encoded once.

    Args:
      trained: the network.
      texts: in turn; "" says nothing.
      negative: what guidance leads away from; "" for nothing, as the text encoder says it.
      guided: how; None for no guidance.
      say: is told of texts that are too long, and how many of their tokens are left out.

    Raises:
      ValueError: a network without a text encoder, or no texts; numbers of guidance out of range.
      FileNotFoundError, ImportError: as its tokenizer.
    """
    if trained.text is None:
        why = f" ({trained.no_text})" if trained.no_text else ""
        raise ValueError(f"--prompt is for networks with a text encoder, and this one has none{why}, got {texts[0]!r}")
    if not texts:
        raise ValueError("the network draws what a text says: give --prompt")
    if guided is not None:
        guided.check(trained)
    different = tuple(dict.fromkeys((*texts, negative)))
    tokens = trained.text.tokens(different)
    for text, cut in zip(different, tokens.cut, strict=True):
        if cut:
            say(f"{text!r} is too long: its last {cut} tokens are left out ({tokens.ids.shape[1] - 2} fit)")
    contexts = dict(zip(different, trained.text.contexts(tokens.ids), strict=True))
    return Prompts(tuple(texts), np.stack([contexts[text] for text in texts]), negative, contexts[negative], guided)


# ---------------------------------------------------------------------------------------------------------- drawing


def check_numbers(trained: Trained, num_images: int, batch_size: int, seed: int, decoded: int | None = None) -> None:
    """Raises ValueError where one of them is out of range, of images at once also where XLA would end the process; or
    where `decoded` is of a network that has no latents."""
    at_least("num_images", num_images)
    at_least("batch_size", batch_size)
    check_batch_size("batch_size", min(batch_size, num_images), trained.image_shape)
    at_least("seed", seed, 0, most=MOST_SEED)
    if decoded is not None:
        at_least("--decode-batch-size", decoded)
        if trained.first_stage is None:
            raise ValueError(f"--decode-batch-size {decoded} is for networks of latents, and this one has images")


class Drawn(NamedTuple):
    """A batch."""

    pictures: np.ndarray
    """uint8 [B, H, W, C]; NaN and -infinity are black, infinity is white."""
    not_finite: list[int]
    """The numbers, counted over all batches, of images with NaN or infinity."""


def pictures(
    trained: Trained, drawn_with: Preset, labels: Labels | Prompts, num_images: int, batch_size: int, seed: int
) -> Iterator[np.ndarray]:
    """uint8 [B, H, W, C], batch after batch, num_images in all.

    Raises:
      ValueError: num_images, batch_size or seed out of range.
      FloatingPointError: an image that is not finite.
    """
    return (finite(batch).pictures for batch in batches(trained, drawn_with, labels, num_images, batch_size, seed))


def batches(
    trained: Trained,
    drawn_with: Preset,
    labels: Labels | Prompts,
    num_images: int,
    batch_size: int,
    seed: int,
    first: int = 0,
    devices: Sequence[jax.Device] | None = None,
    decoded: int | None = None,
) -> Iterator[Drawn]:
    """num_images images, batch after batch, without those before `first`: a multiple of batch_size.

    On several devices these are batches of batch_size on each, side by side: the same bits on any number of devices.
    `decoded` is how many latents are decoded at once, all of a batch by default: a decoder needs more memory than a
    network of latents.

    Raises:
      ValueError: num_images, batch_size, seed or decoded out of range; decoded of a network that has no latents.
    """
    check_numbers(trained, num_images, batch_size, seed, decoded)
    if first >= num_images:
        return iter(())
    batch_size = min(batch_size, num_images)
    devices = (jax.devices()[:1] if devices is None else devices)[: -(-(num_images - first) // batch_size)]
    program = Program(trained, drawn_with, labels, batch_size, seed, devices, decoded)
    return program.batches(weights_of(trained, labels), first, num_images)


def finite(drawn: Drawn, hint: str = "; --allow-non-finite keeps such images") -> Drawn:
    """The batch.

    Args:
      drawn: the batch.
      hint: what an error ends with.

    Raises:
      FloatingPointError: an image in it is not finite.
    """
    if drawn.not_finite:
        count, size = len(drawn.not_finite), len(drawn.pictures)
        raise FloatingPointError(
            f"{count} of {size} images have NaN or infinity, first image {drawn.not_finite[0]}: the sampler diverges, "
            f"or numbers in the network overflow{hint}"
        )
    return drawn


Weights = Any
"""Parameters of the networks that draw, and of the decoder of latents."""


def weights_of(trained: Trained, labels: Labels | Prompts, params: Any = None) -> Weights:
    """What a Program draws with: these parameters of the network, or its own."""
    trained = trained if params is None else replace(trained, params=params)
    return parameters(trained, labels.guidance), trained.first_stage and trained.first_stage.params


class Program:
    """Draws batches, a batch on each device side by side, with any weights; compiled once.

    Args:
      trained: the network.
      drawn_with: its sampler.
      labels: what the images are told.
      batch_size: on each device.
      seed: of all randomness.
      devices: of this process.
      decoded: of latents, so many at once; all of a batch by default.
    """

    def __init__(
        self,
        trained: Trained,
        drawn_with: Preset,
        labels: Labels | Prompts,
        batch_size: int,
        seed: int,
        devices: Sequence[jax.Device],
        decoded: int | None = None,
    ):
        self._labels, self._batch_size = labels, batch_size
        self._mesh = Mesh(np.array(devices), ("batch",))
        draw = _draw(trained, drawn_with, labels.guidance, (batch_size, *trained.image_shape), seed, decoded)
        whole, parts = PartitionSpec(), PartitionSpec("batch")
        specs = {"in_specs": (whole, parts, parts), "out_specs": parts}
        # Not vma: what samplers begin with is the same on all devices, and what they go on with is not.
        self._draw = jax.jit(jax.shard_map(draw, mesh=self._mesh, **specs, check_vma=False))

    def batches(self, weights: Weights, first: int, stop: int) -> Iterator[Drawn]:
        """The images first, ..., stop - 1; `first` is a multiple of batch_size."""
        weights = jax.device_put(weights, NamedSharding(self._mesh, PartitionSpec()))
        at_once = self._batch_size * self._mesh.size
        for begin in range(first, stop, at_once):
            begins = (begin + self._batch_size * np.arange(self._mesh.size)).astype(np.uint32)
            x_0 = np.asarray(self._draw(weights, begins, self._labels.told(begin, at_once)))[: stop - begin]
            yield Drawn(images.to_uint8(x_0), (images.not_finite(x_0) + begin).tolist())


def _draw(
    trained: Trained,
    drawn_with: Preset,
    guided: Guidance | None,
    shape: tuple[int, ...],
    seed: int,
    decoded: int | None = None,
) -> Callable[[Weights, jax.Array, Told], jax.Array]:
    """draw(weights, number of the first image [1], what it is told [B, ...]) -> images [B, H, W, C] in [-1, 1]."""
    table, first_stage = drawn_with.table, trained.first_stage
    if guided is not None:
        table = guided.on(table, trained.schedule.num_timesteps)

    def draw(weights: Weights, first_index: jax.Array, told: Told) -> jax.Array:
        params, decoder_params = weights
        denoise = denoise_of(trained, guided, params, told.told, drawn_with.denoiser, told.otherwise)
        x_0 = samplers.sample(denoise, table, keys.make(seed), shape, first_index=first_index[0])
        return x_0 if first_stage is None else replace(first_stage, params=decoder_params).decode(x_0, decoded)

    return draw
