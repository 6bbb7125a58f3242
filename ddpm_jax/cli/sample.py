"""ddpm-jax sample"""

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tqdm import tqdm

from ddpm_jax import images, opening, pictures
from ddpm_jax.cli import drawn
from ddpm_jax.cli.made_with import made_with
from ddpm_jax.cli.parsing import parse
from ddpm_jax.distil import files as learned_files
from ddpm_jax.host.picture_output import Drawing, Output
from ddpm_jax.trained import Trained, checksum


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleArguments(drawn.DrawArguments):
    num_images: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    out: str | None = None
    """A .png picture of all images side by side; .npz with uint8 images [N, H, W, C], also as ADM's arr_0 (labels:
    arr_1); FOLDER/, new or empty, for numbered .png; by default a picture in the run's or the working directory.
    Nothing that is there is replaced; the same command goes on where one was stopped."""
    allow_non_finite: bool = False
    """Keep images with NaN or infinity, which are black or white, instead of ending with an error."""


def sample(argv: list[str]) -> None:
    """Draw images from a run's averaged parameters, or from the weights of another project."""
    arguments = parse(SampleArguments, argv, "sample")
    output = Output(arguments.out) if arguments.out else None
    trained = drawn.opened(arguments, "the command line")
    planes = images.shown_as(trained.image_shape[-1]) if trained.first_stage is None else None
    if planes is not None and not (arguments.out or "").endswith(".npz"):
        print(planes)
    preset, labels = drawn.preset_and_labels(arguments, trained)
    n, batch_size, seed = arguments.num_images, min(arguments.batch_size, arguments.num_images), arguments.seed
    pictures.check_numbers(trained, n, batch_size, seed, arguments.decode_batch_size)
    home = Path() if trained.run is None else Path(arguments.source)
    output = output or Output(str(home / default_name(arguments, trained)))
    with output.alone(print):
        read = {"texts": labels.contexts} if isinstance(labels, pictures.Prompts) else None
        drawing = Drawing(output, made_with(arguments, trained, preset.table, labels.guidance, read), n, batch_size)
        if drawing.first:
            print(f"going on after {min(drawing.first, n)} images in {output.parts}")
        numbers = n, batch_size, seed, drawing.first
        batches = pictures.batches(trained, preset, labels, *numbers, decoded=arguments.decode_batch_size)
        with tqdm(total=n, initial=drawing.first, unit="image") as bar:
            for batch in batches if arguments.allow_non_finite else map(pictures.finite, batches):
                drawing.add(*batch)
                bar.update(len(batch.pictures))
        drawing.finish(labels.of(0, n))
    if drawing.not_finite:
        print(f"{len(drawing.not_finite)} of {n} images have NaN or infinity, first image {drawing.not_finite[0]}")
    print(f"{n} images: {arguments.out or output.path}")


def _digits(*texts: object) -> str | None:
    """Digits that stand for texts; None where there are none."""
    return checksum(np.frombuffer(repr(texts).encode(), np.uint8)) if any(texts) else None


def default_name(arguments: SampleArguments, trained: Trained) -> str:
    """The name of a picture by what it was drawn with and from: other options give other names."""
    chosen = arguments.timesteps
    spacing = arguments.num_steps or trained.num_steps
    if chosen is not None:
        spacing = f"{len(chosen)}chosen{checksum(np.array(chosen))}"
    name = arguments.sampler or (trained.sampler if trained.scheduler_config is None else None)
    if name is not None and learned_files.is_file(name):
        name, spacing = Path(name).stem, None
    source = f"step{trained.step}" if trained.run is not None else opening.name_of(arguments.source)
    numbers = {
        "label": arguments.label,
        "labels": "-".join(map(str, arguments.labels)) or None,
        "random": "-labels" if arguments.random_labels else None,
        "texts": _digits(arguments.prompt, arguments.prompts and arguments.prompts.name, arguments.negative_prompt),
        "guidance": arguments.guidance_scale,
        "interval": arguments.guidance_interval and "-".join(f"{end:g}" for end in arguments.guidance_interval),
        "rescale": arguments.guidance_rescale,
        "method": None if arguments.guidance_method == "classifier-free" else arguments.guidance_method,
        "numbers": "-".join(f"{name}{value:g}" for name, value in arguments.guidance_numbers.items()) or None,
        "with": arguments.guidance_with and checksum(np.frombuffer(arguments.guidance_with.encode(), np.uint8)),
        "decay": arguments.ema_decay,
        "sigma": arguments.ema_sigma,
        "n": arguments.num_images,
        "seed": arguments.seed,
    }
    parts = [source, name, arguments.grid, spacing]
    parts += [f"{name}{value}" for name, value in numbers.items() if value is not None]
    return "_".join(str(part) for part in parts if part is not None) + ".png"
