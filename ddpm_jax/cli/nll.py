"""ddpm-jax nll"""

import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from ddpm_jax.cli.parsing import parse
from ddpm_jax.evaluate.likelihood import nll
from ddpm_jax.host.bars import NllBar


@dataclasses.dataclass(frozen=True)
class NllArguments:
    workdir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="WORKDIR")]
    """A run's directory."""
    split: str | None = None
    """Of the run's data; "test" by default, or the split of the training where the data has no test split."""
    num_images: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """The first so many images of the split; all by default."""
    batch_size: int = 64
    """Images at once; the noise of image i of a seed is the same whatever it is."""
    seed: int = 0
    num_steps: int | None = None
    """Of the strided process, at evenly spread timesteps; every timestep of the training by default."""
    optimal_steps: tuple[int, ...] | None = None
    """Find the best timesteps for so many steps; 10 20 50 by default."""


def negative_log_likelihood(argv: list[str]) -> None:
    """The variational bound of a run's newest checkpoint: bits/dim, where they go, and files with all of it."""
    arguments = parse(NllArguments, argv, "nll")
    options = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(arguments)}
    with contextlib.closing(NllBar()) as bar:
        folder, summary = nll.evaluate(report=bar, **options)
    bits = summary["bits_per_dim"]
    error = bits["total"]["standard_error"]
    print(f"bits/dim {bits['total']['mean']:.4f}" + ("" if error is None else f" ± {error:.4f}"), end=": ")
    print(", ".join(f"{name} {bits[name]['mean']:.4f}" for name in ("prior", "transitions", "decoder")))
    for n, found in summary["optimal"]["steps"].items():
        print(f"transitions in {n} steps: {found['transitions']:.4f}, evenly spread {found['transitions_even']:.4f}")
    print(f"terms, rate-distortion curve, timesteps: {folder}")
