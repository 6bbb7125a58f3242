"""ddpm-jax film"""

import dataclasses
from typing import Annotated

import numpy as np
import tyro
from tqdm import tqdm

from ddpm_jax.cli import uses
from ddpm_jax.cli.parsing import parse
from ddpm_jax.config.fields import at_least
from ddpm_jax.host import picture_files
from ddpm_jax.host.storage import make_directory, replacing
from ddpm_jax.pictures import preset
from ddpm_jax.uses import film as films
from ddpm_jax.uses.batches import as_pictures

COLUMNS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(uses.SeedOptions):
    num_images: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 4
    columns: int | None = None
    """How many of the steps are shown, evenly spread; by default 10 in a .png, all in a .gif."""
    out: str | None = None
    """A .png strip, with a line for each image and a column for each step; or a .gif that moves. By default a .png in
    the run's or the working directory. Nothing that is there is replaced."""


def film(argv: list[str]) -> None:
    """What the network takes the pictures for while they are drawn: its x_0 at some steps."""
    arguments = parse(Arguments, argv, "film")
    out = uses.new_file(arguments.out, (".png", ".gif")) if arguments.out else None
    at_least("--num-images", arguments.num_images)
    opened = uses.opened(arguments, "film")
    trained = opened.trained
    trained.check_conditions("film", labels=True)
    opened.check_no_memory("film")
    drawn_with = opened.guided(preset(trained, arguments.sampler, arguments.num_steps, arguments.grid, None, print))
    table = drawn_with.table
    out = out or uses.new_file(uses.default_out(arguments, trained, "film", f"seed{arguments.seed}"), (".png",))
    default = table.num_calls if out.suffix == ".gif" else min(COLUMNS, table.num_calls)
    rows = films.chosen(table.num_calls, default if arguments.columns is None else arguments.columns)

    def use(told, key, first_index, indices):
        shape = (len(indices), *trained.image_shape)
        return films.predictions(told(), table, key, shape, rows, first_index=first_index)

    parts, indices = [], np.arange(arguments.num_images, dtype=np.uint32)
    with tqdm(total=arguments.num_images, unit="image") as bar:
        for found in opened.computed(drawn_with, use, [indices]):
            flat = found.reshape(-1, *trained.image_shape)
            parts += [part.reshape(found.shape) for part in as_pictures(iter([flat]))]
            bar.update(len(found))
    pictures = picture_files.enlarged(np.concatenate(parts))
    make_directory(out.parent)
    if out.suffix == ".png":
        picture_files.save_png(out, films.strip(pictures))
    else:
        with replacing(out) as file:
            file.write(films.moving(pictures))
    print(f"{arguments.num_images} pictures at {len(rows)} steps: {out}")
