"""ddpm-jax interpolate"""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ddpm_jax import images, keys
from ddpm_jax.cli import uses
from ddpm_jax.cli.parsing import parse
from ddpm_jax.config.fields import at_least
from ddpm_jax.config.run import MOST_SEED
from ddpm_jax.data import given
from ddpm_jax.host.picture_output import Output
from ddpm_jax.pictures import preset
from ddpm_jax.samplers.configs.common import Preset
from ddpm_jax.uses import interpolation, inversion
from ddpm_jax.uses.image_to_image import start_noise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(uses.Options):
    between: tuple[Path, Path] | None = None
    """Two pictures: the way is between the noises that they come from, as `ddpm-jax invert` finds them."""
    seeds: tuple[int, int] | None = None
    """Or two seeds: between the noises that the first pictures of `ddpm-jax sample --seed` come from."""
    steps: int = 8
    """How many pictures, the two ends among them; at least 2."""
    sampler: str | None = "ddim"
    """A deterministic one; for --between one that remembers nothing, such as ddim or euler."""
    resize: bool = False
    """Crop pictures of another size to the central square, and resize them to the network's."""


def interpolate(argv: list[str]) -> None:
    """Pictures between two: what a sampler makes of the noises on the way from one to the other."""
    arguments = parse(Arguments, argv, "interpolate")
    output = Output(arguments.out) if arguments.out else None
    if (arguments.between is None) == (arguments.seeds is None):
        raise ValueError("give either --between A.png B.png or --seeds A B")
    if arguments.resize and arguments.between is None:
        raise ValueError("--resize is for the pictures of --between, got --seeds")
    at_least("--steps", arguments.steps, 2)
    for seed in arguments.seeds or ():
        at_least("--seeds", seed, 0, most=MOST_SEED)
    opened = uses.opened(arguments, "interpolate")
    trained = opened.trained
    trained.check_conditions("interpolate", labels=True)
    drawn_with = opened.guided(preset(trained, arguments.sampler, arguments.num_steps, arguments.grid, None, print))
    table = drawn_with.table
    interpolation.check_quiet(table)
    if arguments.between is not None:
        ends = _inverted(arguments.between, arguments.resize, opened, drawn_with)
    else:
        shape = (1, *trained.image_shape)
        ends = np.stack([table.init * start_noise(keys.make(seed), shape)[0] for seed in arguments.seeds or ()])
    names = [str(end.stem if isinstance(end, Path) else end) for end in arguments.between or arguments.seeds or ()]
    output = output or Output(uses.default_out(arguments, trained, "interpolate", *names))

    def use(told, key, first_index, fractions):
        a, b = (jnp.asarray(end, jnp.float32) for end in ends)
        return interpolation.between(told(), table, a, b, fractions)

    made_with = opened.made_with(table, {"ends": ends}, ("between",))
    fractions = np.linspace(0, 1, arguments.steps, dtype=np.float32)
    batches = lambda first: opened.computed(drawn_with, use, [fractions], first)
    uses.write(output, made_with, arguments.steps, arguments.batch_size, batches, columns=arguments.steps)


def _inverted(places: tuple[Path, Path], resize: bool, opened: uses.Opened, drawn_with: Preset) -> np.ndarray:
    """X of the first row [2, H, W, C] from which the sampler makes the two pictures."""
    opened.check_no_memory("the inversion of --between")
    inversion.check_table(drawn_with.table)
    pictures = [given.read(place, opened.trained.image_shape, resize, print) for place in places]
    for place, found in zip(places, pictures, strict=True):
        if len(found) != 1:
            raise ValueError(f"--between is two pictures, and {place} holds {len(found)}")

    def use(told, key, first_index, pictures):
        return inversion.invert(told(), drawn_with.table, images.to_float(pictures))

    found = list(opened.computed(drawn_with, use, [np.concatenate(pictures)]))
    for part in found:
        inversion.check(part)
    return np.concatenate([part.x_t for part in found])
