"""ddpm-jax encode"""

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from ddpm_jax import data, opening
from ddpm_jax.cli.parsing import parse
from ddpm_jax.config.run import DataConfig
from ddpm_jax.uses import encode as uses_encode


@dataclasses.dataclass(frozen=True)
class Data:
    """How DATA is read, as in train; a run knows that of its own."""

    dir: str | None = None
    split: str | None = None
    image_size: int | None = None
    key: str | None = None
    transparency: str | None = None
    labels: str | None = None


@dataclasses.dataclass(frozen=True)
class EncodeArguments:
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """The directory of a run of --task autoencoder; a folder of diffusers with a vae, a vqvae or a movq, or of one."""
    images: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="DATA")] = None
    """The images, by a name as of --data.name in train; by default those that the run was trained on."""
    data: Data = Data()
    batch_size: int = 64
    """Images at once."""
    scaling: uses_encode.Scaling = "one"
    """What makes latents ones of variance 1: one factor, the autoencoder's own; or channels: for each channel a shift
    and a factor, measured on these images."""
    out: Path | None = None
    """The folder, new; latents in the run's directory, or NAME_latents here, by default."""


def encode(argv: list[str]) -> None:
    """Encode images once: a folder of latents, which train takes as --data.name."""
    arguments = parse(EncodeArguments, argv, "encode")
    stage, run = opening.first_stage_of(arguments.source, print)
    told = {name: value for name, value in dataclasses.asdict(arguments.data).items() if value is not None}
    if arguments.images is not None:
        read = DataConfig(name=arguments.images, **told)
    elif run is None:
        raise ValueError(f"{arguments.source} does not say which images it was trained on: give DATA")
    elif told:
        raise ValueError(f"--data.{next(iter(told)).replace('_', '-')} is for DATA, and none is given")
    else:
        read = run.data
    home = Path(f"{opening.name_of(arguments.source)}_latents") if run is None else Path(arguments.source) / "latents"
    out = arguments.out or home
    uses_encode.check_new(out)
    source = data.load(read.name, **read.arguments(), say=print)
    print(data.describe(source))
    with tqdm(total=len(source), unit="image") as bar:

        def progress(done: int) -> None:
            bar.update(done - bar.n)

        options = {"batch_size": arguments.batch_size, "scaling": arguments.scaling}
        found = uses_encode.encode(stage, source, out, **options, progress=progress)
    deviations = ", ".join(f"{value:.3g}" for value in found.deviation)
    print(f"{len(source)} latents: {out}; standard deviation of their channels {deviations}, scaled by {found.scale}")
    print(f"train on them: ddpm-jax train --data.name {shlex.quote(str(out))} --sample.clip None")
