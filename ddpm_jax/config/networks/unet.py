"""The U-Net's settings."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ddpm_jax.config.fields import FREE
from ddpm_jax.config.networks.convolutional import Convolutional
from ddpm_jax.config.networks.network import Shape, is_small
from ddpm_jax.models.unet import UNet

RATE, DIGITS_RATE = 2e-4, 6e-3
"""Ho et al.'s for CIFAR-10, and what the digits' small network takes."""


@dataclass(frozen=True)
class UNetConfig(Convolutional):
    """The U-Net, as models.UNet; its output channels are those of the images, twice as many with a learned variance."""

    name: ClassVar[str] = "unet"
    takes: ClassVar[tuple[str, ...]] = ("y", "low_res", "concat")

    upsample: Literal["conv", "nearest", "resblock"] = "conv"
    time_cosine_first: bool = UNet.time_cosine_first
    time_endpoint: bool = UNet.time_endpoint
    remat: bool = field(default=UNet.remat, metadata=FREE)
    """Compute blocks again in the backward pass rather than keep what is inside them."""
    remat_policy: Literal["nothing", "products"] = field(default="nothing", metadata=FREE)
    """What remat keeps nevertheless: products are the results of convolutions and dense layers."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of convolutions and matrix products; parameters, norms and loss are float32."""

    def network(self, out_channels: int, num_classes: int | None = None, null_label: bool = False) -> UNet:
        labels = None if num_classes is None else num_classes + null_label
        return UNet(**self.arguments(), out_channels=out_channels, num_classes=labels)

    def learning_rate(self, image_shape: Shape) -> float:
        return DIGITS_RATE if is_small(image_shape) else RATE
