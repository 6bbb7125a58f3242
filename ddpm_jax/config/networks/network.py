"""What the settings of a network say beside their values, and what of images they have in common."""

import abc
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import jax.numpy as jnp

from ddpm_jax.config.fields import Tagged

Shape = tuple[int, int, int]
SMALL_SIDE = 8
"""Of images like the digits, whose networks are made for minutes on a laptop."""
ATTENDED = 16 * 16
"""Places that attention is affordable among."""


@dataclass(frozen=True)
class Network(Tagged, abc.ABC):
    """The settings of one kind of network, whose name is the tag; those that are None follow from the images.

    Their defaults are the network's own where both have one.
    """

    said: ClassVar[tuple[str, ...]]
    """Those which a run says when it begins: the size of the network."""

    @classmethod
    def section(cls) -> str:
        return "model"

    takes: ClassVar[tuple[str, ...]] = ("y",)
    """What the network can be told beside x_t and t, by its arguments' names."""

    @abc.abstractmethod
    def network(self, out_channels: int, num_classes: int | None = None, null_label: bool = False) -> Any:
        """The network with these settings, resolved before, and so many channels in its output.

        Args:
          out_channels: of its output.
          num_classes: labels that it is told; None for none.
          null_label: whether num_classes is a label too, which stands for no class.
        """

    @abc.abstractmethod
    def following(self, image_shape: Shape) -> dict[str, Any]:
        """What settings that are None are, for images [H, W, C] and beside those that are given."""

    @abc.abstractmethod
    def learning_rate(self, image_shape: Shape) -> float:
        """The rate it is trained at where none is given."""

    @abc.abstractmethod
    def attends_among(self, image_shape: Shape) -> tuple[str, int, int]:
        """Which part of it has to attend to how many places, in height and width, whatever its settings allow."""

    def resolved(self, image_shape: Shape) -> Self:
        """These settings without None that follows from images [H, W, C]; what is given stays."""
        missing = {item.name for item in fields(self) if getattr(self, item.name) is None}
        return replace(self, **{k: v for k, v in self.following(image_shape).items() if k in missing})

    def arguments(self) -> dict[str, Any]:
        """The settings as arguments of the network."""
        return vars(self) | {"dtype": jnp.dtype(vars(self)["dtype"])}


def is_small(image_shape: Shape) -> bool:
    return min(image_shape[:2]) <= SMALL_SIDE
