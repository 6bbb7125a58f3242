"""What the commands that use a trained network on pictures have in common: options, what is read, what is written."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from ddpm_jax import opening
from ddpm_jax.cli.guided import GuidanceArguments, check_negative_prompt, chosen_guidance
from ddpm_jax.cli.made_with import made_with
from ddpm_jax.data import given
from ddpm_jax.guided import Guidance
from ddpm_jax.host.picture_output import Drawing, Output
from ddpm_jax.pictures import Prompts, prompts
from ddpm_jax.runs import posthoc
from ddpm_jax.samplers import Table
from ddpm_jax.samplers.configs.common import Preset
from ddpm_jax.trained import Trained
from ddpm_jax.uses.batches import Use, as_pictures, check_numbers, check_pixels, checked_label, computed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(GuidanceArguments):
    """Of every such command."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A run's directory; a folder or checkpoint of another project; or hf:OWNER/NAME."""
    sampler: str | None = None
    """One of those that `ddpm-jax samplers` lists; by default the run's sample.sampler, or the one that a folder came
    with."""
    num_steps: int | None = None
    """Steps of the whole sampler, by default the run's sample.num_steps, or 50 (diffusers: num_inference_steps)."""
    grid: str | None = None
    """Where the steps are: one of the grids that `ddpm-jax samplers` lists; None is the sampler's own."""
    batch_size: int = 64
    """Pictures at once."""
    label: int | None = None
    """The class of all pictures, where the network has classes; by default none, where a label stands for that."""
    prompt: str | None = None
    """What all pictures show, of a network with a text encoder."""
    negative_prompt: str | None = None
    """As in sample."""
    ema_decay: float | None = None
    """As in sample."""
    ema_sigma: float | None = None
    """As in sample."""
    config: Path | None = None
    """As in sample."""
    out: str | None = None
    """A .png picture of all pictures side by side; .npz with uint8 images [N, H, W, C]; FOLDER/, new or empty, for
    numbered .png, in the order of the pictures' names; by default a picture in the run's or the working directory.
    Nothing that is there is replaced; the same command goes on where one was stopped."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedOptions(Options):
    """Of a command that draws noise."""

    seed: int = 0
    """Picture i of a seed has the same noise whatever the others and batch_size are (diffusers: generator)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureOptions(Options):
    """Of a command that is given pictures."""

    images: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PICTURES")]
    """A picture, or a folder of some, at any depth."""
    resize: bool = False
    """Crop pictures of another size to the central square, and resize them to the network's."""


@dataclasses.dataclass(frozen=True)
class Opened:
    """A network, and what the options say of it."""

    arguments: Options
    trained: Trained
    label: int | None
    """That it is told of all pictures."""
    text: Prompts | None
    """As well."""
    guidance: Guidance | None

    def guided(self, preset: Preset) -> Preset:
        """The sampler with guidance's numbers in its table."""
        if self.guidance is None:
            return preset
        return preset._replace(table=self.guidance.on(preset.table, self.trained.schedule.num_timesteps))

    def computed(self, preset: Preset, use: Use, arrays: Sequence[np.ndarray], first: int = 0) -> Iterator[Any]:
        """As uses.batches.computed."""
        seed = self.arguments.seed if isinstance(self.arguments, SeedOptions) else 0
        numbers = {"batch_size": self.arguments.batch_size, "seed": seed, "first": first}
        told = {"label": self.label, "text": self.text, "guided": self.guidance, **numbers}
        return computed(self.trained, preset.denoiser, use, arrays, **told)

    def made_with(self, table: Table, read: Mapping[str, np.ndarray], places: Sequence[str] = ()) -> dict[str, Any]:
        """All that the bits of the pictures depend on: of the options, those but the places that they are read from."""
        return made_with(self.arguments, self.trained, table, self.guidance, read, ("images", *places))

    def check_no_memory(self, what: str) -> None:
        """Raises ValueError: a method of guidance that remembers earlier steps, where that is not passed on."""
        if self.guidance is not None and self.guidance.method.memory is not None:
            raise ValueError(
                f"--guidance-method {self.guidance.name} remembers the steps before, and {what} does not pass that on"
            )


def opened(arguments: Options, command: str, *, latents: bool = False) -> Opened:
    """The network, and what it is told.

    Args:
      arguments: the options.
      command: its name.
      latents: whether the network may denoise latents.

    Raises:
      ValueError: one of latents, one that needs more than a label or a text, a label that it has not, guidance that it
        cannot have; as opening.open.
    """
    check_numbers(arguments.batch_size, arguments.seed if isinstance(arguments, SeedOptions) else 0)
    guidance = chosen_guidance(arguments, print)
    average = posthoc.Average(arguments.ema_decay, arguments.ema_sigma)
    trained = opening.open(arguments.source, print, average, arguments.config)
    if not latents:
        check_pixels(trained, command)
    if trained.run is None:
        print(trained.origin)
    label = checked_label(trained, arguments.label)
    if guidance is not None:
        guidance.check(trained)
        if guidance.beside is None and arguments.label is None and trained.text is None:
            raise ValueError(f"--guidance-scale {guidance.scale:g} is towards a class: give --label")
    return Opened(arguments, trained, label, _text(arguments, trained, guidance), guidance)


def _text(arguments: Options, trained: Trained, guidance: Guidance | None) -> Prompts | None:
    """What all pictures show.

    Raises:
      ValueError: as pictures.prompts and check_negative_prompt.
    """
    check_negative_prompt(arguments.negative_prompt, guidance, trained)
    if arguments.prompt is None and trained.text is None:
        return None
    texts = () if arguments.prompt is None else (arguments.prompt,)
    return prompts(trained, texts, arguments.negative_prompt or "", guidance, print)


def read(arguments: PictureOptions, trained: Trained) -> np.ndarray:
    """The pictures, uint8 [N, H, W, C]."""
    return given.read(arguments.images, trained.picture_shape, arguments.resize, print)


def default_out(arguments: Options, trained: Trained, *parts: str, ending: str = ".png") -> str:
    """The parts as a name, in a run's directory; of all else after the network's name, here."""
    if trained.run is not None:
        return str(Path(arguments.source) / ("_".join(parts) + ending))
    return "_".join([opening.name_of(arguments.source), *parts]) + ending


def new_file(out: str, endings: Sequence[str]) -> Path:
    """Where a file of a command's own kind goes.

    Raises:
      ValueError: another ending; a file that is there.
    """
    path = Path(out)
    if path.suffix not in endings:
        raise ValueError(f"unknown ending {path.suffix!r} of --out {out} (known: {', '.join(endings)})")
    if path.exists():
        raise ValueError(f"{path} is there already: choose another --out, or delete it")
    return path


def write(
    output: Output,
    made_with: Mapping[str, Any],
    num_images: int,
    batch_size: int,
    batches_from: Callable[[int], Iterator[np.ndarray]],
    columns: int | None = None,
) -> None:
    """Draw all pictures into their files, with a progress bar; where a call was stopped, from there on.

    Args:
      output: where they go.
      made_with: as from `settings`.
      num_images: N.
      batch_size: as many as each of the batches has.
      batches_from: from the number of the first picture to images x_0, batch after batch.
      columns: of a PNG.

    Raises:
      FloatingPointError: an image that is not finite.
    """
    batch_size = min(batch_size, num_images)
    with output.alone(print):
        drawing = Drawing(output, made_with, num_images, batch_size)
        if drawing.first:
            print(f"going on after {min(drawing.first, num_images)} pictures in {output.parts}")
        with tqdm(total=num_images, initial=drawing.first, unit="image") as bar:
            for pictures in as_pictures(batches_from(drawing.first), drawing.first):
                drawing.add(pictures)
                bar.update(len(pictures))
        drawing.finish(None, columns)
    print(f"{num_images} pictures: {output.path}")
