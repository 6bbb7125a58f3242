"""ddpm-jax invert"""

import dataclasses

import numpy as np
from tqdm import tqdm

from ddpm_jax import images
from ddpm_jax.cli import uses
from ddpm_jax.cli.parsing import parse
from ddpm_jax.host import picture_files
from ddpm_jax.host.storage import make_directory, replacing
from ddpm_jax.pictures import preset
from ddpm_jax.uses import inversion

RANGE = 2.0
"""Of images in [-1, 1]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(uses.PictureOptions):
    sampler: str | None = "ddim"
    """A deterministic one that remembers nothing, such as ddim or euler."""
    out: str | None = None
    """A .npz file with x_T float32 [N, H, W, C], the standard normal noise that samplers.sample(x_T=...) begins with,
    and the images and reconstructions, uint8; or a .png picture with a line for each: picture, noise, reconstruction.
    By default a .npz file in the run's or the working directory. Nothing that is there is replaced."""


def invert(argv: list[str]) -> None:
    """The noise that given pictures come from, each step solved backwards, and what the sampler makes of it again."""
    arguments = parse(Arguments, argv, "invert")
    out = uses.new_file(arguments.out, (".npz", ".png")) if arguments.out else None
    opened = uses.opened(arguments, "invert")
    trained = opened.trained
    trained.check_conditions("invert", labels=True)
    opened.check_no_memory("invert")
    drawn_with = opened.guided(preset(trained, arguments.sampler, arguments.num_steps, arguments.grid, None, print))
    table = drawn_with.table
    inversion.check_table(table)
    pictures = uses.read(arguments, trained)
    default = uses.default_out(arguments, trained, "invert", arguments.images.stem, ending=".npz")
    out = out or uses.new_file(default, (".npz",))

    def use(told, key, first_index, pictures):
        denoise = told()
        found = inversion.invert(denoise, table, images.to_float(pictures))
        return found, inversion.reconstruct(denoise, table, found.x_t)

    parts = []
    with tqdm(total=len(pictures), unit="image") as bar:
        for found, again in opened.computed(drawn_with, use, [pictures]):
            inversion.check(found)
            parts.append((found.x_t / np.float32(table.init), again, found.calls.sum(axis=1)))
            bar.update(len(again))
    x_T, again, calls = (np.concatenate(part) for part in zip(*parts, strict=True))
    make_directory(out.parent)
    if out.suffix == ".npz":
        with replacing(out) as file:
            np.savez_compressed(file, x_T=x_T, images=pictures, reconstructions=images.to_uint8(again))
    else:
        lines = np.stack([pictures, images.to_uint8(x_T / 3), images.to_uint8(again)], axis=1)
        picture_files.save_grid(out, lines.reshape(-1, *lines.shape[2:]), columns=3)
    error = np.abs(again - images.to_float(pictures)).max() / RANGE
    print(f"largest error of the way there and back: {error:.1e} of the range; {calls.mean():.0f} calls a picture")
    print(f"{len(pictures)} pictures: {out}")
