"""ddpm-jax sample"""

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tqdm import tqdm

from ddpm_jax import opening, pictures
from ddpm_jax.cli.parsing import parse
from ddpm_jax.distil import files as learned_files
from ddpm_jax.host import picture_files
from ddpm_jax.runs import posthoc
from ddpm_jax.trained import Trained


@dataclasses.dataclass(frozen=True)
class SampleArguments:
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A run's directory; a folder or checkpoint of another project; or hf:OWNER/NAME."""
    sampler: str | None = None
    """One of those that `ddpm-jax samplers` lists, or a FILE.json of learn-sampler; by default the run's
    sample.sampler, or the one that a folder came with."""
    num_steps: int | None = None
    """Steps, by default the run's sample.num_steps, or 50; `ddpm-jax samplers` says how many network calls they are."""
    grid: str | None = None
    """Where the steps are: one of the grids that `ddpm-jax samplers` lists; None is the sampler's own."""
    timesteps: tuple[int, ...] | None = None
    """Which of the training's timesteps to visit, instead of num_steps of them, such as those that nll finds."""
    num_images: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    seed: int = 0
    """Image i of a seed begins with the same noise whatever num_images and batch_size are."""
    batch_size: int = 64
    """Images drawn at once."""
    label: int | None = None
    """The class of all images, where the network has classes; by default image i is of class i, counted around."""
    guidance_scale: float | None = None
    """Of classifier-free guidance u + scale (c - u), where the network has a label that stands for no class."""
    ema_decay: float | None = None
    """The decay of the average of a run's parameters: one that it keeps; optimizer.ema_decay by default."""
    ema_sigma: float | None = None
    """The width of a power function instead: any that its snapshots of optimizer.ema_sigmas give."""
    config: Path | None = None
    """FILE.json with what a network of another project does not say itself, as interop.load(config=) takes it."""
    out: str | None = None
    """A .png picture of all images side by side; .npz with uint8 images [N, H, W, C], also as ADM's arr_0 (labels:
    arr_1); FOLDER/, new or empty, for numbered .png; by default a picture in the run's or the working directory."""


def sample(argv: list[str]) -> None:
    """Draw images from a run's averaged parameters, or from the weights of another project."""
    arguments = parse(SampleArguments, argv, "sample")
    save = picture_files.saver(arguments.out) if arguments.out else None
    average = posthoc.Average(arguments.ema_decay, arguments.ema_sigma)
    trained = opening.open(arguments.source, print, average, arguments.config)
    trained.check_conditions("the command line", labels=True)
    if trained.run is None:
        print(trained.origin)
    spacing = arguments.num_steps, arguments.grid, arguments.timesteps
    preset = pictures.preset(trained, arguments.sampler, *spacing, print)
    labels = pictures.labels(trained, arguments.label, arguments.guidance_scale)
    n = arguments.num_images
    drawn = pictures.pictures(trained, preset, labels, n, arguments.batch_size, arguments.seed)
    batches = []
    with tqdm(total=n, unit="image") as bar:
        for batch in drawn:
            batches.append(batch)
            bar.update(len(batch))
    home = Path() if trained.run is None else Path(arguments.source)
    out = arguments.out or str(home / default_name(arguments, trained))
    (save or picture_files.saver(out))(np.concatenate(batches), labels.of(0, n))
    print(f"{n} images: {out}")


def default_name(arguments: SampleArguments, trained: Trained) -> str:
    """The name of a picture by what it was drawn with; of no run, also from what."""
    chosen = arguments.timesteps
    spacing = (arguments.num_steps or trained.num_steps) if chosen is None else f"{len(chosen)}chosen"
    label = None if arguments.label is None else f"label{arguments.label}"
    source = None if trained.run is not None else opening.name_of(arguments.source)
    decay = None if arguments.ema_decay is None else f"decay{arguments.ema_decay}"
    sigma = None if arguments.ema_sigma is None else f"sigma{arguments.ema_sigma}"
    name = arguments.sampler or (trained.sampler if trained.scheduler_config is None else None)
    if name is not None and learned_files.is_file(name):
        name, spacing = Path(name).stem, None
    which = [source, name, arguments.grid, spacing, label, decay, sigma]
    parts = [*which, f"seed{arguments.seed}"]
    return "_".join(str(part) for part in parts if part is not None) + ".png"
