"""What the two convolutional networks have alike, the U-Net and the classifier, and what follows from the images.

The digits' networks are for 8 x 8 images; larger ones get more levels and channels, as Ho et al.'s networks do, but
narrow enough for one small accelerator.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ddpm_jax.config.fields import at_least, in_unit_interval
from ddpm_jax.config.networks.network import ATTENDED, SMALL_SIDE, Network, Shape, is_small
from ddpm_jax.models.encoder import Encoder

MULTIPLIERS = ((1,), (1, 2), (1, 2, 2), (1, 2, 2, 2), (1, 1, 2, 2, 4), (1, 1, 2, 2, 4, 4))
"""By the number of halvings. Four and six levels are those of Ho et al. 2020 (arXiv:2006.11239), appendix B."""
CHANNELS = ((SMALL_SIDE, 16), (28, 32))
"""(side, channels): for images whose shorter side is at most that; others have MOST_CHANNELS."""
MOST_CHANNELS, MOST_GROUPS, DIGITS_GROUPS = 64, 32, 8


@dataclass(frozen=True)
class Convolutional(Network):
    """The way down and the middle, as models.encoder.Encoder; each also has the fields time_*, remat* and dtype."""

    said: ClassVar[tuple[str, ...]] = (
        "channels", "channel_multipliers", "num_res_blocks", "attention_resolutions", "num_groups",
    )  # fmt: skip

    channels: int | None = None
    channel_multipliers: tuple[int, ...] | None = None
    num_res_blocks: int = 1
    attention_resolutions: tuple[int, ...] | None = None
    dropout: float = 0.0
    num_groups: int | None = None
    norm_eps: float = Encoder.norm_eps
    num_heads: int = Encoder.num_heads
    num_head_channels: int | None = Encoder.num_head_channels
    """Channels of each attention head, instead of num_heads."""
    scale_shift_norm: bool = Encoder.scale_shift_norm
    """Whether time scales and shifts a norm instead of being added."""
    downsample: Literal["conv", "pool", "resblock"] = "conv"
    downsample_padding: Literal[0, 1] = 0

    def __post_init__(self):
        super().__post_init__()
        check_widths(self.channels, self.channel_multipliers, self.num_res_blocks)
        for name in ("num_groups", "num_heads", "num_head_channels"):
            if (value := getattr(self, name)) is not None:
                at_least(f"model.{name}", value)
        in_unit_interval("model.dropout", self.dropout)
        if self.norm_eps <= 0:
            raise ValueError(f"model.norm_eps must be positive, got {self.norm_eps}")
        policy, remat = vars(self)["remat_policy"], vars(self)["remat"]
        if policy != "nothing" and not remat:
            raise ValueError(f"model.remat_policy {policy!r} is for model.remat, which is off")

    def following(self, image_shape: Shape) -> dict[str, Any]:
        channels = channels_for(image_shape) if self.channels is None else self.channels
        multipliers = self.channel_multipliers
        if multipliers is None:
            multipliers = MULTIPLIERS[halvings(image_shape)]
        return {
            "channels": channels,
            "channel_multipliers": multipliers,
            "attention_resolutions": attended(image_shape, len(multipliers)),
            "num_groups": DIGITS_GROUPS if is_small(image_shape) else groups([channels * each for each in multipliers]),
        }

    def attends_among(self, image_shape: Shape) -> tuple[str, int, int]:
        assert self.channel_multipliers is not None
        halved = len(self.channel_multipliers) - 1
        return "its middle", image_shape[0] >> halved, image_shape[1] >> halved


def check_widths(channels: int | None, multipliers: tuple[int, ...] | None, num_res_blocks: int) -> None:
    """Raises ValueError: the width, one level's multiple of it, or the blocks of a level out of range."""
    if channels is not None:
        at_least("model.channels", channels, 4, most=2**16)
    for multiplier in multipliers or ():
        at_least("model.channel_multipliers", multiplier, most=2**16)
    at_least("model.num_res_blocks", num_res_blocks, most=2**7)


def channels_for(image_shape: Shape) -> int:
    """The width at the image's own size, where nobody says."""
    return next((own for side, own in CHANNELS if min(image_shape[:2]) <= side), MOST_CHANNELS)


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
