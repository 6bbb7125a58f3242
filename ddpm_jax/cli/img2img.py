"""ddpm-jax img2img"""

import dataclasses

from ddpm_jax import images
from ddpm_jax.cli import uses
from ddpm_jax.cli.parsing import parse
from ddpm_jax.host.picture_output import Output
from ddpm_jax.uses import image_to_image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(uses.PictureOptions, uses.SeedOptions):
    strength: float = 0.5
    """The fraction of the steps that is run, in (0, 1]: int(N strength) of N; 1 keeps next to nothing of the picture
    (diffusers' image-to-image pipelines: strength)."""


def img2img(argv: list[str]) -> None:
    """Pictures like given ones: noise is added, and taken away by the network."""
    arguments = parse(Arguments, argv, "img2img")
    output = Output(arguments.out) if arguments.out else None
    image_to_image.check_strength(arguments.strength)
    opened = uses.opened(arguments, "img2img", latents=True)
    trained = opened.trained
    trained.check_conditions("img2img", labels=True, texts=True)
    spacing = arguments.sampler, arguments.num_steps, arguments.grid
    preset = opened.guided(image_to_image.preset(trained, arguments.strength, *spacing, print))
    pictures = uses.read(arguments, trained)
    output = output or Output(
        uses.default_out(arguments, trained, "img2img", arguments.images.stem, f"seed{arguments.seed}")
    )

    def use(told, key, first_index, pictures):
        x_0 = told.encoded(images.to_float(pictures))
        found = image_to_image.image_to_image(told(), preset.table, key, x_0, first_index=first_index)
        return told.decoded(found)

    made_with = opened.made_with(preset.table, {"pictures": pictures})
    batches = lambda first: opened.computed(preset, use, [pictures], first)
    uses.write(output, made_with, len(pictures), arguments.batch_size, batches)
