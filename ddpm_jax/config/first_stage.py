"""What a first stage minimizes beside the settings of its network: the reconstruction, and an adversary."""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from ddpm_jax.config.fields import Section, at_least

LEAST = {"vgg": 16, "alex": 31, "squeeze": 17}
"""The smallest images of which each network has features in its last layer."""


@dataclass(frozen=True)
class ReconstructionConfig(Section):
    """How far a reconstruction is from its image."""

    pixel: Literal["l1", "l2"] = "l1"
    """The mean of |x - x^|, or of its square."""
    perceptual: Literal["efficientnet", "vgg", "alex", "squeeze"] | None = None
    """Features in which image and reconstruction are compared besides: efficientnet of the extra eval; or LPIPS in one
    of the others, whose weights the user has."""
    weights: str | None = None
    """Of LPIPS: a FILE with torchvision's vgg16, alexnet or squeezenet1_1; its heads are those of the package lpips."""
    perceptual_weight: float | None = None
    """Of that distance, against the mean of one number of an image; 1 by default."""

    def __post_init__(self):
        super().__post_init__()
        if self.perceptual is None and self.perceptual_weight is not None:
            raise ValueError(
                "reconstruction.perceptual_weight is for reconstruction.perceptual, "
                f"got {self.perceptual_weight} without it"
            )
        if self.perceptual_weight is not None:
            at_least("reconstruction.perceptual_weight", self.perceptual_weight, 0)
        of_lpips = self.perceptual not in (None, "efficientnet")
        if of_lpips and self.weights is None:
            raise ValueError(f"reconstruction.perceptual {self.perceptual} needs reconstruction.weights FILE")
        if not of_lpips and self.weights is not None:
            raise ValueError(
                f"reconstruction.weights is for reconstruction.perceptual {', '.join(LEAST)}, got {self.weights!r} "
                f"with {self.perceptual}"
            )

    def check_fits(self, image_shape: tuple[int, int, int]) -> None:
        """Whether the features of such images are there.

        Raises:
          ValueError: images of another number of colours than 1 or 3, or too small.
        """
        if self.perceptual is None:
            return
        height, width, channels = image_shape
        if channels not in (1, 3):
            raise ValueError(
                f"reconstruction.perceptual {self.perceptual} compares grey images or colours, got {channels} channels"
            )
        if min(height, width) < (least := LEAST.get(self.perceptual, 1)):
            raise ValueError(
                f"reconstruction.perceptual {self.perceptual} needs images of at least {least} x {least}, got "
                f"{height} x {width}"
            )


@dataclass(frozen=True)
class AdversaryConfig(Section):
    """A discriminator of patches, trained beside the autoencoder; none by default."""

    loss: Literal["hinge", "vanilla"] | None = None
    """What it minimizes; with it there is an adversary."""
    start: int | None = None
    """The first step that it is trained at, and that it is heard at; half of train.num-steps by default."""
    weight: float | None = None
    """Of what fools it, against the reconstruction's gradient at the decoder's last layer; 0.5 by default."""
    adaptive: bool | None = None
    """Whether the weight is of the quotient of those gradients, up to 10000; otherwise of the loss itself. True by
    default."""
    gradient_penalty: float | None = None
    """gamma of R1: of the discriminator's squared gradient at images of the data; 0 by default."""
    channels: int | None = None
    """Of the discriminator's first convolution; 32 by default."""
    num_layers: int | None = None
    """Of the discriminator, of stride 2; by default 3, or as many as the images allow."""

    def __post_init__(self):
        super().__post_init__()
        given = [item.name for item in fields(self) if getattr(self, item.name) is not None]
        if self.loss is None and given:
            raise ValueError(
                f"adversary.{given[0]} is for adversary.loss hinge or vanilla, got {getattr(self, given[0])} without it"
            )
        for name, least in (("start", 0), ("weight", 0), ("gradient_penalty", 0), ("channels", 1), ("num_layers", 1)):
            if (value := getattr(self, name)) is not None:
                at_least(f"adversary.{name}", value, least, most=2**31 - 1 if name == "start" else 2**16)

    def resolved(self, num_steps: int, image_shape: tuple[int, int, int]) -> "AdversaryConfig":
        """With the defaults of an adversary, where there is one."""
        if self.loss is None:
            return self
        layers = next((n for n in (3, 2, 1) if 4 * 2**n <= min(image_shape[:2])), 1)
        follows: dict[str, Any] = {"start": num_steps // 2, "weight": 0.5, "adaptive": True, "gradient_penalty": 0.0}
        follows |= {"channels": 32, "num_layers": layers}
        return replace(self, **{name: value for name, value in follows.items() if getattr(self, name) is None})

    def check_steps(self, num_steps: int) -> None:
        """Whether it is there before the training ends.

        Raises:
          ValueError: it is not.
        """
        if self.start is not None and self.start >= num_steps:
            raise ValueError(
                f"adversary.start must be below train.num_steps, the adversary's first step, got {self.start} and "
                f"{num_steps}"
            )

    def check_fits(self, image_shape: tuple[int, int, int]) -> None:
        """Whether its discriminator has patches in such images.

        Raises:
          ValueError: it has more layers than they allow.
        """
        least = 4 * 2 ** (self.num_layers or 1)
        if min(image_shape[:2]) < least:
            raise ValueError(
                f"adversary.num_layers {self.num_layers} needs images of at least {least} x {least}, got "
                f"{image_shape[0]} x {image_shape[1]}"
            )
