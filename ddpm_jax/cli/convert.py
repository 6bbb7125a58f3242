"""ddpm-jax convert"""

import dataclasses
import math
import shlex
from pathlib import Path
from typing import Annotated

import jax
import tyro

from ddpm_jax import interop, opening
from ddpm_jax.cli.parsing import parse
from ddpm_jax.runs import posthoc
from ddpm_jax.uses import inpainting


@dataclasses.dataclass(frozen=True)
class ConvertArguments:
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A run's directory; a folder or checkpoint of another project; or hf:OWNER/NAME."""
    destination: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """A new or empty directory."""
    ema_decay: float | None = None
    """As in sample: which average of a run's parameters."""
    ema_sigma: float | None = None
    """As in sample."""
    config: Path | None = None
    """As in sample."""


def convert(argv: list[str]) -> None:
    """Write a run, or the weights of another project, as a folder that diffusers loads."""
    arguments = parse(ConvertArguments, argv, "convert")
    average = posthoc.Average(arguments.ema_decay, arguments.ema_sigma)
    trained = opening.open(arguments.source, print, average, arguments.config)
    interop.save_diffusers(arguments.destination, trained)
    height, width, channels = trained.image_shape
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(trained.params)]
    kind = "images" if trained.first_stage is None else "latents"
    print(f"{trained.origin}: {sum(sizes):,} parameters, {kind} of {height} x {width} x {channels}")
    print(f"written for diffusers: {arguments.destination}")
    if trained.no_text:
        print(f"without a text encoder, so that its pipeline takes prompts as embeddings: {trained.no_text}")
    prompt, folder = "" if trained.text is None else ' --prompt "..."', shlex.quote(str(arguments.destination))
    if inpainting.is_told(trained):
        command, given = f"inpaint {folder} PICTURES --mask MASK{prompt}", 1
    else:
        command, given = f"sample {folder}{prompt}", 0
    if len(trained.conditions.others) == given:  # else it is for Python: the command line cannot give what it needs
        print(f"pictures: ddpm-jax {command}")
