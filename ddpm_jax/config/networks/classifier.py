"""The settings of the classifier of noisy images: those of ADM's where they do not follow from the images.

Its groups are narrower than ADM's 32 on a small network, and its res blocks one a level, as the U-Net's here.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ddpm_jax.config.fields import FREE
from ddpm_jax.config.networks.convolutional import Convolutional
from ddpm_jax.config.networks.network import Shape, is_small
from ddpm_jax.models.classifier import Classifier

RATE, DIGITS_RATE = 3e-4, 2e-3
"""That of the README of ADM's code, and what the digits' small network takes."""
HEAD = 64
"""Channels of a head, at most."""


@dataclass(frozen=True)
class ClassifierConfig(Convolutional):
    """ADM's classifier, as models.Classifier: the U-Net's way down and middle, then a pool; for --task classifier."""

    name: ClassVar[str] = "classifier"
    said: ClassVar[tuple[str, ...]] = (*Convolutional.said, "num_head_channels")
    takes: ClassVar[tuple[str, ...]] = ()

    norm_eps: float = 1e-5
    num_head_channels: int | None = None
    """Channels of each attention head; by default as many as fit all levels, up to 64, unless num_heads is given."""
    scale_shift_norm: bool = True
    """Whether time scales and shifts a norm instead of being added."""
    downsample: Literal["conv", "pool", "resblock"] = "resblock"
    downsample_padding: Literal[0, 1] = 1
    time_cosine_first: bool = True
    time_endpoint: bool = False
    pool: Literal["attention", "adaptive", "spatial", "spatial_v2"] = "attention"
    """From features to logits: a token that attends to all others, for images of one size; the mean; or the means of
    every layer, through one hidden layer."""
    remat: bool = field(default=Classifier.remat, metadata=FREE)
    """Compute blocks again in the backward pass rather than keep what is inside them."""
    remat_policy: Literal["nothing", "products"] = field(default="nothing", metadata=FREE)
    """What remat keeps nevertheless: products are the results of convolutions and dense layers."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of convolutions and matrix products; parameters, norms and loss are float32."""

    def network(self, out_channels: int, num_classes: int | None = None, null_label: bool = False) -> Classifier:
        assert num_classes is None and not null_label  # it is told none: its output are the classes
        return Classifier(**self.arguments(), out_channels=out_channels)

    def following(self, image_shape: Shape) -> dict[str, Any]:
        found = super().following(image_shape)
        channels = found["channels"] if self.channels is None else self.channels
        shared = math.gcd(*(channels * each for each in found["channel_multipliers"]))
        size = next(n for n in range(min(HEAD, shared), 0, -1) if shared % n == 0)
        return found | {"num_head_channels": size if self.num_heads == 1 else None}

    def learning_rate(self, image_shape: Shape) -> float:
        return DIGITS_RATE if is_small(image_shape) else RATE
