"""ddpm-jax upscale"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from ddpm_jax import images
from ddpm_jax.cli import uses
from ddpm_jax.cli.parsing import parse
from ddpm_jax.data import given
from ddpm_jax.host.picture_output import Output
from ddpm_jax.pictures import preset
from ddpm_jax.uses import upscaling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(uses.SeedOptions):
    images: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PICTURES")]
    """A picture, or a folder of some, all of one size: smaller than the network's, and of the same proportions."""


def upscale(argv: list[str]) -> None:
    """Larger pictures of small ones, by a network that was trained for it."""
    arguments = parse(Arguments, argv, "upscale")
    output = Output(arguments.out) if arguments.out else None
    opened = uses.opened(arguments, "upscale")
    trained = opened.trained
    upscaling.check_network(trained)
    drawn_with = opened.guided(preset(trained, arguments.sampler, arguments.num_steps, arguments.grid, None, print))
    table = drawn_with.table
    pictures = given.read_smaller(arguments.images, trained.image_shape)
    output = output or Output(
        uses.default_out(arguments, trained, "upscale", arguments.images.stem, f"seed{arguments.seed}")
    )

    def use(told, key, first_index, pictures):
        low_res = images.to_float(pictures)
        return upscaling.upscale(told, table, key, low_res, trained.image_shape, first_index=first_index)

    made_with = opened.made_with(table, {"pictures": pictures})
    batches = lambda first: opened.computed(drawn_with, use, [pictures], first)
    uses.write(output, made_with, len(pictures), arguments.batch_size, batches)
