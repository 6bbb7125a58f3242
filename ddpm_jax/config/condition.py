"""What a run tells its network beside x_t and t."""

from dataclasses import dataclass, replace
from typing import Literal

from ddpm_jax.config.fields import Section, at_least

ConditionName = Literal["class", "low-res", "mask"]
DROP, FACTOR = 0.1, 2
"""Of Ho & Salimans 2022 (arXiv:2207.12598), section 4.2, one of the best three; and the least that is smaller."""


@dataclass(frozen=True)
class ConditionConfig(Section):
    """What the network is told beside the noisy image and the time."""

    names: tuple[ConditionName, ...] = ()
    """Typed as --condition. class: the label; low-res: the image made smaller, for super-resolution; mask: the image
    outside of a rectangle, for in-painting. Several are told together."""
    drop: float | None = None
    """The probability that an example is told nothing instead, from which guidance needs to learn; 0.1 by default."""
    low_res_factor: int | None = None
    """How many times smaller the image of low-res is; 2 by default."""
    low_res_noise: float | None = None
    """The largest standard deviation of noise on it, of images in [-1, 1]: against differences between real images
    made smaller and those that a network drew. 0 by default."""

    def __post_init__(self):
        super().__post_init__()
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"condition.names must be different ones, got {' '.join(self.names)}")
        if self.drop is not None and not (self.names and 0 <= self.drop < 1):
            raise ValueError(
                f"condition.drop must lie in [0, 1) and is for a --condition, got {self.drop} "
                f"with {' '.join(self.names) or 'none'}"
            )
        for name, least in (("low_res_factor", 2), ("low_res_noise", 0)):
            if (value := getattr(self, name)) is not None:
                if "low-res" not in self.names:
                    raise ValueError(f"condition.{name} is for --condition low-res, got {value} without it")
                at_least(f"condition.{name}", value, least, 2**10)

    def resolved(self) -> "ConditionConfig":
        """With the defaults of the conditions that there are."""
        given = {"drop": DROP} if self.names else {}
        given |= {"low_res_factor": FACTOR, "low_res_noise": 0.0} if "low-res" in self.names else {}
        return replace(self, **{name: value for name, value in given.items() if getattr(self, name) is None})
