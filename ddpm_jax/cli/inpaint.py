"""ddpm-jax inpaint"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
import tyro

from ddpm_jax import images, samplers
from ddpm_jax import pictures as drawing
from ddpm_jax.cli import uses
from ddpm_jax.cli.parsing import parse
from ddpm_jax.data import given
from ddpm_jax.host.picture_output import Output
from ddpm_jax.samplers import Table
from ddpm_jax.samplers.configs.common import Preset
from ddpm_jax.trained import Trained
from ddpm_jax.uses import image_to_image, inpainting
from ddpm_jax.uses.batches import Told


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(uses.PictureOptions, uses.SeedOptions):
    mask: Annotated[Path, tyro.conf.arg(metavar="MASK")]
    """A picture of the same size, or a folder with one for each: WHITE IS PAINTED ANEW, black is kept, and what is at
    least half white counts as white (diffusers' in-painting pipelines: mask_image; RePaintPipeline's is the other way
    round, and 0 is painted there)."""
    method: Literal["repaint", "replacement", "blended", "network"] | None = None
    """network is for those that are told the known pixels, as runs with --condition mask, and their default; of others
    repaint, the default of pixels, goes back and forth in time, so that old and new pixels agree; replacement and
    blended, the default of latents, go through once, with any --sampler, and with fresh noise on what is known at each
    level or always the same, as StableDiffusionInpaintPipeline does."""
    strength: float | None = None
    """Not of repaint: the fraction of the steps that is run, in (0, 1]; 1, the default, begins with noise, less with
    what is there (StableDiffusionInpaintPipeline: strength)."""
    jump_length: int | None = None
    """Of repaint: how many steps a jump goes back; 10 by default (RePaintPipeline: jump_length)."""
    jump_n_sample: int | None = None
    """Of repaint: how often each stretch is sampled; 10 by default (RePaintPipeline: jump_n_sample)."""
    eta: float | None = None
    """Of repaint: noise of its steps, in [0, 1]; 1 by default, as in the paper (RePaintPipeline: eta, 0 there)."""


def inpaint(argv: list[str]) -> None:
    """Paint what is white in a mask anew, so that it fits the rest of a picture."""
    arguments = parse(Arguments, argv, "inpaint")
    output = Output(arguments.out) if arguments.out else None
    opened = uses.opened(arguments, "inpaint", latents=True)
    trained = opened.trained
    method = _method(arguments, opened)
    preset = opened.guided(_preset(arguments, trained, method))
    pictures = uses.read(arguments, trained)
    white = given.read_masks(arguments.mask, trained.picture_shape[:2], arguments.resize, len(pictures))
    if trained.first_stage is not None:
        inpainting.check_paints(white, trained.image_shape)
    output = output or Output(
        uses.default_out(
            arguments, trained, "inpaint", arguments.images.stem, arguments.mask.stem, f"seed{arguments.seed}"
        )
    )
    known = np.broadcast_to(~white, pictures.shape).astype(np.float32)
    use = partial(_painted, method, preset.table, arguments.strength not in (None, 1))
    made_with = opened.made_with(preset.table, {"pictures": pictures, "masks": known}, ("mask",))
    batches = lambda first: opened.computed(preset, use, [pictures, known], first)
    uses.write(output, made_with, len(pictures), arguments.batch_size, batches)


def _painted(
    method: str,
    table: Table,
    begins_with_it: bool,
    told: Told,
    key: jax.Array,
    first_index: jax.Array,
    pictures: jax.Array,
    known: jax.Array,
) -> jax.Array:
    """A batch of pictures, painted by a method along a table."""
    x = images.to_float(pictures)
    x_0 = told.encoded(x)
    begin = {}
    if begins_with_it:
        z = image_to_image.start_noise(key, x_0.shape, first_index)
        begin = {"x_t": image_to_image.noised(table, x_0, z)}
    if told.stage is not None and method == "network":
        conditioning = inpainting.known_latents_to_network(
            told.encoded(x * known, inpainting.MASKED), inpainting.of_latents(known, x_0.shape)
        )
        return told.decoded(
            samplers.sample(told(**conditioning), table, key, x_0.shape, first_index=first_index, **begin)
        )
    denoise = told(**inpainting.known_to_network(x, known)) if method == "network" else told()
    known = known if told.stage is None else inpainting.of_latents(known, x_0.shape)
    paint = inpainting.METHODS[method]
    return told.decoded(paint(denoise, table, key, x_0, known, first_index=first_index, **begin))


def _method(arguments: Arguments, opened: uses.Opened) -> str:
    """The one asked for, or the network's own.

    Raises:
      ValueError: the network is not for it.
    """
    trained = opened.trained
    by_default = "repaint" if trained.first_stage is None else "blended"
    method = arguments.method or ("network" if inpainting.is_told(trained) else by_default)
    if method == "network":
        inpainting.check_network(trained)
        return method
    if inpainting.is_told(trained):
        raise ValueError(f"the network is told which pixels are known: --method network, got {method}")
    trained.check_conditions("inpaint", labels=True, texts=True)
    opened.check_no_memory(f"--method {method}")
    return method


def _preset(arguments: Arguments, trained: Trained, method: str) -> Preset:
    """The sampler, for which all options that are given are.

    Raises:
      ValueError: some are of the other method; as the presets of both.
    """
    given_to_repaint = {name: getattr(arguments, name) for name in ("jump_length", "jump_n_sample", "eta")}
    given_to_repaint = {name: value for name, value in given_to_repaint.items() if value is not None}
    if method == "repaint":
        for name in ("sampler", "strength"):
            if (value := getattr(arguments, name)) is not None:
                raise ValueError(f"--method repaint takes all steps of its own sampler: --{name} {value} is for others")
        return inpainting.repaint_preset(trained, arguments.num_steps, arguments.grid, **given_to_repaint)
    for name, value in given_to_repaint.items():
        raise ValueError(f"--{name.replace('_', '-')} {value} is for --method repaint, got {method}")
    spacing = arguments.sampler, arguments.num_steps, arguments.grid
    if arguments.strength in (None, 1):
        return drawing.preset(trained, *spacing, None, print)
    return image_to_image.preset(trained, arguments.strength, *spacing, print)
