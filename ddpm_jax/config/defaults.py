"""What a configuration leaves to the images: the widths and levels of the network, and the rate it is trained at.

The digits' network and rate are for 8 x 8 images; larger ones get more levels and channels, as Ho et al.'s networks
do, but narrow enough for one small accelerator.
"""

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TypeVar

from ddpm_jax.config.run import Config, ModelConfig, OptimizerConfig

Shape = tuple[int, int, int]
S = TypeVar("S", ModelConfig, OptimizerConfig)
MULTIPLIERS = ((1,), (1, 2), (1, 2, 2), (1, 2, 2, 2), (1, 1, 2, 2, 4), (1, 1, 2, 2, 4, 4))
"""By the number of halvings. Four and six levels are those of Ho et al. 2020 (arXiv:2006.11239), appendix B."""
CHANNELS = ((8, 16), (28, 32))
"""(side, channels): for images whose shorter side is at most that; others have MOST_CHANNELS."""
MOST_CHANNELS, MOST_GROUPS, DIGITS_GROUPS = 64, 32, 8
ATTENDED = 16 * 16
"""Places that attention is affordable among."""
RATE, DIGITS_RATE = 2e-4, 6e-3
"""Ho et al.'s for CIFAR-10, and what the digits' small network takes."""


def resolved(config: Config, image_shape: Shape) -> Config:
    """The configuration with everything that it leaves to images [H, W, C] filled in; what is given stays."""
    rate = DIGITS_RATE if _is_small(image_shape) else RATE
    return replace(
        config,
        model=_filled(config.model, **network(config.model, image_shape)),
        optimizer=_filled(config.optimizer, learning_rate=rate),
    )


def network(given: ModelConfig, image_shape: Shape) -> dict[str, object]:
    """The settings that ModelConfig leaves out, for these images and beside those that it gives."""
    height, width, _ = image_shape
    channels = given.channels
    if channels is None:
        channels = next((own for side, own in CHANNELS if min(height, width) <= side), MOST_CHANNELS)
    multipliers = given.channel_multipliers
    if multipliers is None:
        multipliers = MULTIPLIERS[halvings(image_shape)]
    return {
        "channels": channels,
        "channel_multipliers": multipliers,
        "attention_resolutions": attended(image_shape, len(multipliers)),
        "num_groups": DIGITS_GROUPS if _is_small(image_shape) else groups([channels * each for each in multipliers]),
    }


def halvings(image_shape: Shape) -> int:
    """How often images are halved on the way down: to sides of 4 (2 from 4 x 4), as far as 2 divides both sides."""
    height, width, _ = image_shape
    wanted = max(1, int(math.log2(min(height, width) / 4)))
    return next(n for n in range(min(wanted, len(MULTIPLIERS) - 1), -1, -1) if height % 2**n == width % 2**n == 0)


def attended(image_shape: Shape, levels: int) -> tuple[int, ...]:
    """The height of the finest level below the images' own that attention is affordable at; of all, if none is."""
    height, width, _ = image_shape
    sides = [(height >> level, width >> level) for level in range(levels)]
    affordable = [(h, w) for h, w in sides if h * w <= ATTENDED]
    below = [(h, w) for h, w in affordable if h < height and h >= 4]
    return tuple(h for h, _ in (below or affordable)[:1])


def groups(widths: Sequence[int]) -> int:
    """The most groups that divide all widths, up to 32, of at least 2 channels."""
    shared = math.gcd(*widths)
    return next((n for n in range(min(MOST_GROUPS, shared // 2), 0, -1) if shared % n == 0), 1)


def described(config: Config, image_shape: Shape, num_parameters: int) -> str:
    """The network of a resolved configuration in one line, as the options that give it."""
    model, (height, width, channels) = config.model, image_shape
    assert model.channel_multipliers is not None and model.attention_resolutions is not None
    options = {
        "model.channels": model.channels,
        "model.channel-multipliers": " ".join(map(str, model.channel_multipliers)),
        "model.num-res-blocks": model.num_res_blocks,
        "model.attention-resolutions": " ".join(map(str, model.attention_resolutions)),
        "model.num-groups": model.num_groups,
        "optimizer.learning-rate": config.optimizer.learning_rate,
    }
    said = " ".join(f"--{name} {value}".rstrip() for name, value in options.items())
    line = f"network of {num_parameters:,} parameters for images of {height} x {width} x {channels}: {said}"
    halved = len(model.channel_multipliers) - 1
    coarsest = height >> halved, width >> halved
    if math.prod(coarsest) <= ATTENDED:
        return line
    return f"{line}; slow, as its middle attends among {coarsest[0]} x {coarsest[1]}: --data.image-size changes that"


def _filled(section: S, **values: object) -> S:
    """The section with these values where it has none."""
    missing = {item.name for item in fields(section) if getattr(section, item.name) is None}
    return replace(section, **{name: value for name, value in values.items() if name in missing})


def _is_small(image_shape: Shape) -> bool:
    return min(image_shape[:2]) <= CHANNELS[0][0]
