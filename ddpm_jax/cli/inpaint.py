"""ddpm-jax inpaint"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from ddpm_jax import images
from ddpm_jax import pictures as drawing
from ddpm_jax.cli import uses
from ddpm_jax.cli.parsing import parse
from ddpm_jax.data import given
from ddpm_jax.host.picture_output import Output
from ddpm_jax.samplers.configs.common import Preset
from ddpm_jax.trained import Trained
from ddpm_jax.uses import inpainting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(uses.PictureOptions, uses.SeedOptions):
    mask: Annotated[Path, tyro.conf.arg(metavar="MASK")]
    """A picture of the same size, or a folder with one for each: WHITE IS PAINTED ANEW, black is kept, and what is at
    least half white counts as white (diffusers' in-painting pipelines: mask_image; RePaintPipeline's is the other way
    round, and 0 is painted there)."""
    method: Literal["repaint", "replacement", "network"] | None = None
    """network is for runs with --condition mask, and their default; of others repaint, the default, goes back and forth
    in time, so that old and new pixels agree, and replacement goes through once, with any --sampler."""
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
    opened = uses.opened(arguments, "inpaint")
    trained = opened.trained
    method = _method(arguments, opened)
    preset = opened.guided(_preset(arguments, trained, method))
    pictures = uses.read(arguments, trained)
    white = given.read_masks(arguments.mask, trained.image_shape[:2], arguments.resize, len(pictures))
    output = output or Output(
        uses.default_out(
            arguments, trained, "inpaint", arguments.images.stem, arguments.mask.stem, f"seed{arguments.seed}"
        )
    )
    known = np.broadcast_to(~white, pictures.shape).astype(np.float32)
    paint = inpainting.METHODS[method]

    def use(told, key, first_index, pictures, known):
        original = images.to_float(pictures)
        denoise = told(**inpainting.known_to_network(original, known)) if method == "network" else told()
        return paint(denoise, preset.table, key, original, known, first_index=first_index)

    made_with = opened.made_with(preset.table, {"pictures": pictures, "masks": known}, ("mask",))
    batches = lambda first: opened.computed(preset, use, [pictures, known], first)
    uses.write(output, made_with, len(pictures), arguments.batch_size, batches)


def _method(arguments: Arguments, opened: uses.Opened) -> str:
    """The one asked for, or the network's own.

    Raises:
      ValueError: the network is not for it.
    """
    trained = opened.trained
    method = arguments.method or ("network" if inpainting.is_told(trained) else "repaint")
    if method == "network":
        inpainting.check_network(trained)
        return method
    if inpainting.is_told(trained):
        raise ValueError(f"the network is told which pixels are known: --method network, got {method}")
    trained.check_conditions("inpaint", labels=True)
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
        if arguments.sampler is not None:
            raise ValueError(f"--method repaint has its own sampler: --sampler {arguments.sampler} is for the others")
        return inpainting.repaint_preset(trained, arguments.num_steps, arguments.grid, **given_to_repaint)
    for name, value in given_to_repaint.items():
        raise ValueError(f"--{name.replace('_', '-')} {value} is for --method repaint, got {method}")
    return drawing.preset(trained, arguments.sampler, arguments.num_steps, arguments.grid, None, print)
