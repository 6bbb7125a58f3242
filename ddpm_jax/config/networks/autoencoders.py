"""The settings of the autoencoders that can be trained as first stages, of their latents and of what bounds these.

By default images are made 4 times smaller, 2 times where they are as small as the digits; latents have 4 channels, or
as many as FSQ has levels.
"""

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import jax.numpy as jnp

from ddpm_jax.config.fields import at_least
from ddpm_jax.config.networks.convolutional import DIGITS_GROUPS, channels_for, check_widths, groups
from ddpm_jax.config.networks.network import Network, Shape, is_small
from ddpm_jax.models.autoencoder import Autoencoder, AutoencoderKL
from ddpm_jax.models.quantizers import FSQModel
from ddpm_jax.models.vq import VQModel

MULTIPLIERS, DIGITS_MULTIPLIERS = (1, 2, 2), (1, 2)
RATE, DIGITS_RATE = 5e-4, 2e-3
CODEBOOK_DECAY = 0.99
"""Of the codebook's averages: van den Oord et al. 2017 (arXiv:1711.00937), appendix A.1."""


@dataclass(frozen=True)
class AutoencoderConfig(Network):
    """Encoder and decoder, as models.autoencoder; each kind has its own latents."""

    said: ClassVar[tuple[str, ...]] = ("channels", "channel_multipliers", "num_res_blocks", "num_groups")
    takes: ClassVar[tuple[str, ...]] = ()
    of_loss: ClassVar[tuple[str, ...]] = ()
    """The fields that are none of the network's."""

    channels: int | None = None
    """Width at the image's own size."""
    channel_multipliers: tuple[int, ...] | None = None
    """Of each level; the latents are 2^(levels - 1) times smaller than the images."""
    num_res_blocks: int = 1
    """Of each level of the encoder; the decoder has one more."""
    attention_levels: tuple[int, ...] = ()
    """Levels with attention after every res block; the middle has it anyway."""
    num_groups: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of convolutions and matrix products; parameters, norms and loss are float32."""

    def __post_init__(self):
        super().__post_init__()
        check_widths(self.channels, self.channel_multipliers, self.num_res_blocks)
        if self.num_groups is not None:
            at_least("model.num_groups", self.num_groups)

    def following(self, image_shape: Shape) -> dict[str, Any]:
        channels = channels_for(image_shape) if self.channels is None else self.channels
        multipliers = self.channel_multipliers
        if multipliers is None:
            multipliers = DIGITS_MULTIPLIERS if is_small(image_shape) else MULTIPLIERS
        own = groups([channels * each for each in multipliers])
        return {
            "channels": channels,
            "channel_multipliers": multipliers,
            "num_groups": min(DIGITS_GROUPS, own) if is_small(image_shape) else own,
        }

    def learning_rate(self, image_shape: Shape) -> float:
        return DIGITS_RATE if is_small(image_shape) else RATE

    @property
    def factor(self) -> int:
        """How many times smaller than images the latents are, of a configuration that is resolved."""
        assert self.channel_multipliers is not None
        return 2 ** (len(self.channel_multipliers) - 1)

    def check_fits(self, image_shape: Shape) -> None:
        """Whether images have whole latents.

        Raises:
          ValueError: the factor does not divide their sides.
        """
        height, width, _ = image_shape
        if height % self.factor or width % self.factor:
            levels = " ".join(map(str, self.channel_multipliers or ()))
            raise ValueError(
                f"images of {height} x {width} cannot be made {self.factor} times smaller, as "
                f"--model.channel-multipliers {levels} does: give fewer levels, or --data.image-size"
            )

    def attends_among(self, image_shape: Shape) -> tuple[str, int, int]:
        return "its middle", image_shape[0] // self.factor, image_shape[1] // self.factor

    def arguments(self) -> dict[str, Any]:
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in self.of_loss}
        return own | {"dtype": jnp.dtype(self.dtype)}


@dataclass(frozen=True)
class KLConfig(AutoencoderConfig):
    """AutoencoderKL: latents are drawn from a normal distribution of each image."""

    name: ClassVar[str] = "kl"
    said: ClassVar[tuple[str, ...]] = (*AutoencoderConfig.said, "latent_channels")
    of_loss: ClassVar[tuple[str, ...]] = ("kl_weight",)

    latent_channels: int = AutoencoderKL.latent_channels
    kl_weight: float = 1e-6
    """Of the divergence from N(0, 1), both summed over an image as in latent-diffusion, whose it is."""

    def __post_init__(self):
        super().__post_init__()
        at_least("model.latent_channels", self.latent_channels, most=2**10)
        at_least("model.kl_weight", self.kl_weight, 0)

    def network(self, out_channels: int, num_classes: int | None = None, null_label: bool = False) -> Autoencoder:
        assert num_classes is None and not null_label
        return AutoencoderKL(**self.arguments(), z_channels=self.latent_channels, out_channels=out_channels)


@dataclass(frozen=True)
class VQConfig(AutoencoderConfig):
    """VQModel: latents are entries of a codebook."""

    name: ClassVar[str] = "vq"
    said: ClassVar[tuple[str, ...]] = (*AutoencoderConfig.said, "latent_channels", "num_codes")
    of_loss: ClassVar[tuple[str, ...]] = ("codebook", "codebook_decay", "commitment", "beta_on", "codebook_weight")

    latent_channels: int = 4
    num_codes: int = 512
    codebook: Literal["averages", "gradient"] = "averages"
    """How the codebook learns: as averages of what was encoded to each code, or by the gradient of its loss."""
    codebook_decay: float | None = None
    """Of the averages; 0.99 by default."""
    commitment: float = 0.25
    """beta: of the encoder's distance from its codes."""
    beta_on: Literal["encoder", "codebook"] = "encoder"
    """Which side beta weighs: the encoder's, as the paper, or the codebook's, as the first code of taming and
    latent-diffusion; for codebook gradient."""
    codebook_weight: float = 1.0
    """Of the whole codebook loss."""

    def __post_init__(self):
        super().__post_init__()
        at_least("model.latent_channels", self.latent_channels, most=2**10)
        at_least("model.num_codes", self.num_codes, 2, most=2**20)
        for name in ("commitment", "codebook_weight"):
            at_least(f"model.{name}", getattr(self, name), 0)
        if self.codebook_decay is not None and not (self.codebook == "averages" and 0 <= self.codebook_decay < 1):
            raise ValueError(
                "model.codebook_decay must lie in [0, 1) and is for model.codebook averages, "
                f"got {self.codebook_decay} with {self.codebook}"
            )
        if self.beta_on != "encoder" and self.codebook == "averages":
            raise ValueError(f"model.beta_on {self.beta_on} is for model.codebook gradient, got {self.codebook}")

    def following(self, image_shape: Shape) -> dict[str, Any]:
        decay = {"codebook_decay": CODEBOOK_DECAY} if self.codebook == "averages" else {}
        return super().following(image_shape) | decay

    def network(self, out_channels: int, num_classes: int | None = None, null_label: bool = False) -> Autoencoder:
        assert num_classes is None and not null_label
        return VQModel(**self.arguments(), z_channels=self.latent_channels, out_channels=out_channels)


@dataclass(frozen=True)
class FSQConfig(AutoencoderConfig):
    """FSQModel: each channel of the latents is rounded to one of a few levels."""

    name: ClassVar[str] = "fsq"
    said: ClassVar[tuple[str, ...]] = (*AutoencoderConfig.said, "levels")

    levels: tuple[int, ...] = tuple(FSQModel.levels)
    """Of each channel; as many channels as numbers, as many codes as their product."""

    def __post_init__(self):
        super().__post_init__()
        if not self.levels:
            raise ValueError("model.levels must be numbers from 2 on, one for each channel of the latents, got none")
        for level in self.levels:
            at_least("model.levels", level, 2, most=2**10)
        if (codes := math.prod(self.levels)) > 2**30:
            raise ValueError(f"model.levels must have at most {2**30} codes, got {codes}")

    def network(self, out_channels: int, num_classes: int | None = None, null_label: bool = False) -> Autoencoder:
        assert num_classes is None and not null_label
        channels = len(self.levels)
        return FSQModel(**self.arguments(), latent_channels=channels, z_channels=channels, out_channels=out_channels)
