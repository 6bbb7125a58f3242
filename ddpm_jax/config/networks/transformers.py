"""The settings of the two transformers over patches, DiT and U-ViT, and what they are where they follow from images.

Patches are as small as leaves few enough of them to attend among. The digits' networks are made for minutes on a
laptop: of the same price, a wide one among few tokens draws better digits than a narrow one among many. Images up to
28 x 28 get a small network, and larger ones the smallest that was published.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ddpm_jax.config.fields import FREE, at_least
from ddpm_jax.config.networks.network import ATTENDED, SMALL_SIDE, Network, Shape, is_small
from ddpm_jax.models import dit, uvit
from ddpm_jax.models.dit import DiT
from ddpm_jax.models.uvit import UViT

SMALL_HEAD, HEAD = 32, 64
"""Channels of a head, about: of the digits' networks, and of published ones."""
SMALL_PATCHES = 8
"""Tokens that the digits' networks have, at most."""


@dataclass(frozen=True)
class Transformer(Network):
    """What both have; each names its fields, as their order and defaults differ."""

    said: ClassVar[tuple[str, ...]] = ("width", "depth", "num_heads", "patch_size")
    sizes: ClassVar[tuple[tuple[float, int, int], ...]]
    """(side, width, depth): for images whose shorter side is at most that."""
    rates: ClassVar[tuple[float, float]]
    """Of the digits, and of larger images."""

    width: int | None = None
    """Channels of a token."""
    depth: int | None = None
    """Blocks."""
    num_heads: int | None = None
    patch_size: int | None = None
    """Edge of a patch in pixels: divides height and width."""
    mlp_ratio: float = DiT.mlp_ratio
    """Hidden units of the MLP in units of width."""
    remat: bool = field(default=DiT.remat, metadata=FREE)
    """Compute blocks again in the backward pass rather than keep what is inside them."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products; parameters, norms and loss are float32."""

    def __post_init__(self):
        super().__post_init__()
        for name, most in (("width", 2**16), ("depth", 2**10), ("num_heads", 2**16), ("patch_size", 2**16)):
            if (value := getattr(self, name)) is not None:
                at_least(f"model.{name}", value, most=most)
        if not 0 < self.mlp_ratio <= 2**10:
            raise ValueError(f"model.mlp_ratio must lie in (0, {2**10}], got {self.mlp_ratio}")

    def following(self, image_shape: Shape) -> dict[str, Any]:
        width, depth = next(size for side, *size in self.sizes if min(image_shape[:2]) <= side)
        head = SMALL_HEAD if is_small(image_shape) else HEAD
        return {
            "width": width,
            "depth": depth,
            "num_heads": heads(width if self.width is None else self.width, head),
            "patch_size": patch_size(image_shape),
        }

    def learning_rate(self, image_shape: Shape) -> float:
        return self.rates[0] if is_small(image_shape) else self.rates[1]

    def attends_among(self, image_shape: Shape) -> tuple[str, int, int]:
        assert self.patch_size is not None
        return "it", image_shape[0] // self.patch_size, image_shape[1] // self.patch_size


@dataclass(frozen=True)
class DiTConfig(Transformer):
    """DiT, as models.DiT: a transformer over patches that time steers through its norms."""

    name: ClassVar[str] = "dit"
    sizes: ClassVar[tuple[tuple[float, int, int], ...]] = (
        (SMALL_SIDE, 160, 4),
        (28, 192, 6),
        (math.inf, dit.SIZES["S"]["width"], dit.SIZES["S"]["depth"]),
    )
    rates: ClassVar[tuple[float, float]] = (3e-3, 1e-4)
    """The second: Peebles and Xie 2022 (arXiv:2212.09748), section 4."""

    def network(self, out_channels: int, num_classes: int | None = None, null_label: bool = False) -> DiT:
        labels = {"num_classes": num_classes, "null_label": null_label}
        return DiT(**self.arguments(), **labels, out_channels=out_channels)


@dataclass(frozen=True)
class UViTConfig(Transformer):
    """U-ViT, as models.UViT: time is a token, and blocks have long skip connections."""

    name: ClassVar[str] = "uvit"
    sizes: ClassVar[tuple[tuple[float, int, int], ...]] = (
        (SMALL_SIDE, 160, 5),
        (28, 192, 7),
        (math.inf, uvit.SIZES["S"]["width"], uvit.SIZES["S"]["depth"]),
    )
    rates: ClassVar[tuple[float, float]] = (1e-3, 2e-4)
    """The second: Bao et al. 2023 (arXiv:2209.12152), appendix."""

    qkv_bias: bool = UViT.qkv_bias
    """Whether queries, keys and values have a bias."""
    time_mlp: bool = UViT.time_mlp
    """Whether the sinusoids of the time pass through dense, silu, dense."""
    final_conv: bool = UViT.final_conv
    """Whether the image passes through a last 3x3 convolution."""

    def __post_init__(self):
        super().__post_init__()
        if self.depth is not None and self.depth % 2 == 0:
            raise ValueError(f"model.depth of a U-ViT must be odd, got {self.depth}")

    def network(self, out_channels: int, num_classes: int | None = None, null_label: bool = False) -> UViT:
        labels = None if num_classes is None else num_classes + null_label
        return UViT(**self.arguments(), num_classes=labels, out_channels=out_channels)


def patch_size(image_shape: Shape) -> int:
    """The smallest divisor of both sides from 2 on that leaves few enough patches; if none does, the largest."""
    height, width, _ = image_shape
    shared = math.gcd(height, width)
    divisors = [p for p in range(1, shared + 1) if shared % p == 0]
    most = SMALL_PATCHES if is_small(image_shape) else ATTENDED
    few = [p for p in divisors if p > 1 and (height // p) * (width // p) <= most]
    return few[0] if few else divisors[-1]


def heads(width: int, channels: int) -> int:
    """The most heads that divide the width and have at least so many channels; 1, if none have."""
    return next((n for n in range(width // channels, 0, -1) if width % n == 0), 1)
