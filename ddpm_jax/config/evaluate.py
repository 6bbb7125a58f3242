"""Metrics of the pictures while a run trains."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from ddpm_jax.config.fields import Section, at_least


@dataclass(frozen=True)
class EvaluateConfig(Section):
    """Metrics of pictures drawn from the average of parameters while it trains, against the data of the training."""

    every: int | None = None
    """Every so many steps, and after the last; by default never."""
    metrics: tuple[str, ...] = ("kid",)
    """As of ddpm-jax evaluate."""
    features: str = "inception"
    """As of ddpm-jax evaluate."""
    inputs: Literal["tensorflow", "pytorch-fid"] = "tensorflow"
    """As of ddpm-jax evaluate."""
    num_images: int = 1000
    """Drawn, by sample.sampler in sample.num_steps steps."""
    against_images: int | None = None
    """The first so many images of the data; all by default. Their features are kept for the next run."""
    batch_size: int = 64
    """Drawn at once on a device."""

    def __post_init__(self):
        super().__post_init__()
        least = {"every": 1, "num_images": 2, "against_images": 2, "batch_size": 1}
        for name, number in least.items():
            if (value := getattr(self, name)) is not None:
                at_least(f"evaluate.{name}", value, number)
        for item in dataclasses.fields(self):
            if self.every is None and (value := getattr(self, item.name)) != item.default:
                raise ValueError(f"evaluate.{item.name} is for evaluate.every, got {value!r} without it")
