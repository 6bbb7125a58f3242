"""ddpm-jax nll"""

import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from ddpm_jax import opening
from ddpm_jax.cli.parsing import parse
from ddpm_jax.evaluate.likelihood import nll
from ddpm_jax.host.bars import NllBar


@dataclasses.dataclass(frozen=True)
class Data:
    """Which images, of what is no run; a run knows its own. As in train."""

    name: str | None = None
    dir: str | None = None
    image_size: int | None = None
    key: str | None = None
    transparency: str | None = None


@dataclasses.dataclass(frozen=True)
class NllArguments:
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A run's directory; a folder or checkpoint of another project; or hf:OWNER/NAME."""
    data: Data = Data()
    split: str | None = None
    """Of the data; "test" by default, or the split of the training where the data has no test split."""
    num_images: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """The first so many images of the split; all by default."""
    batch_size: int = 64
    """Images at once; the noise of image i of a seed is the same whatever it is."""
    seed: int = 0
    num_steps: int | None = None
    """Of the strided process, at evenly spread timesteps; every timestep of the training by default."""
    optimal_steps: tuple[int, ...] | None = None
    """Find the best timesteps for so many steps; 10 20 50 by default."""
    config: Path | None = None
    """As in sample."""
    out: Path | None = None
    """The results are in a folder in this one; WORKDIR/nll of a run, ./NAME_nll of all else."""


def negative_log_likelihood(argv: list[str]) -> None:
    """The variational bound of a network: bits/dim, where they go, and files with all of it."""
    arguments = parse(NllArguments, argv, "nll")
    numbers = ("split", "num_images", "batch_size", "seed", "num_steps", "optimal_steps")
    with contextlib.closing(NllBar()) as bar:
        trained = opening.open(arguments.source, bar.say, config=arguments.config)
        home = arguments.out or opening.results(arguments.source, trained, "nll")
        images_of = opening.data_of(arguments.source, trained, **dataclasses.asdict(arguments.data))
        folder, summary = nll.evaluate(
            trained, images_of, home, bar, **{name: getattr(arguments, name) for name in numbers}
        )
    bits = summary["bits_per_dim"]
    error = bits["total"]["standard_error"]
    print(f"bits/dim {bits['total']['mean']:.4f}" + ("" if error is None else f" ± {error:.4f}"), end=": ")
    print(", ".join(f"{name} {bits[name]['mean']:.4f}" for name in ("prior", "transitions", "decoder")))
    for n, found in summary["optimal"]["steps"].items():
        print(f"transitions in {n} steps: {found['transitions']:.4f}, evenly spread {found['transitions_even']:.4f}")
    print(f"terms, rate-distortion curve, timesteps: {folder}")
