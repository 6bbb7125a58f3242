"""A classifier of noisy images that was trained, ready to guide: p(y | x_t, t).

`opening.classifier` gives it for a run of ours and for a file of OpenAI's. Its gradient is what `guidance.mean_shifted`
and `guidance.score_shifted` take.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ddpm_jax.config.fields import check_image_shape
from ddpm_jax.config.run import Config
from ddpm_jax.models import Classifier, bind
from ddpm_jax.objectives import log_probs
from ddpm_jax.process import ModelFn
from ddpm_jax.schedules import Schedule
from ddpm_jax.trained import Trained, check_finite

SAME = 1e-6
"""Two schedules are the same if no alphas_cumprod differs by more: they are kept in float32."""


@dataclass(frozen=True)
class NoisyClassifier:
    """A network of x_t and t, its parameters, and how x_t became noisy where it learned.

    Attributes:
      origin: what it is, in words: "a run of ddpm-jax, 6000 steps".
      config: the settings of the network in the words of its origin.
      model: the network; its output are logits [B, num_classes].
      params: its parameters: float32, on the host.
      schedule: of the noise that it learned from.
      image_shape: (H, W, C) of the images.
      time_scale: the network is told time_scale times the timestep of the schedule.
      run: the configuration of a run of ours; None of what another project trained.
      step: of the run's training that the parameters are from.
      classes: the names of the classes, where they are known.
    """

    origin: str
    config: Mapping[str, Any]
    model: Classifier
    params: Any
    schedule: Schedule
    image_shape: tuple[int, int, int]
    time_scale: float = 1.0
    run: Config | None = None
    step: int | None = None
    classes: tuple[str, ...] | None = None

    def __post_init__(self):
        check_image_shape("image_size", self.image_shape)

    @property
    def num_classes(self) -> int:
        """y is one of so many."""
        return self.model.out_channels

    def model_fn(self, params: Any = None) -> ModelFn:
        """logits [B, num_classes] = model_fn(x_t, t), told the times of the schedule [B] float32.

        Args:
          params: instead of the ones it came with.
        """
        model_fn = bind(self.model, self.params if params is None else params)
        return lambda x_t, t: model_fn(x_t, self.time_scale * t)

    def log_prob_gradient(self, y: jax.Array | np.ndarray, params: Any = None) -> ModelFn:
        """gradient(x_t, t) = grad of sum_b log p(y_b | x_t_b, t_b) with respect to x_t.

        Source: Dhariwal & Nichol 2021 (arXiv:2105.05233), section 4, algorithms 1 and 2.

        Args:
          y: [B] int, the classes.
          params: instead of the ones it came with; an argument of a compiled program, as y may be.

        Returns:
          gradient(x_t [B, H, W, C], t [B] float32) -> like x_t.

        Raises:
          ValueError: y is not [B] int, or one is no class of this classifier. Raised while tracing; not seen of y that
            is traced, whose gradient is then NaN.
        """
        check_labels(y, self.num_classes)
        model_fn = self.model_fn(params)

        def gradient(x_t: jax.Array, t: jax.Array) -> jax.Array:
            if y.shape != x_t.shape[:1]:
                raise ValueError(f"y must be [B] with B = {x_t.shape[0]}, got {list(y.shape)}")
            log_prob = lambda x: jnp.sum(log_probs(model_fn(x, t), jnp.asarray(y)))
            return jax.grad(log_prob)(x_t)

        return gradient

    def check_guides(self, trained: Trained) -> None:
        """Whether it knows the images and the noise of a diffusion model.

        Raises:
          ValueError: it does not.
        """
        if self.image_shape != trained.image_shape:
            ours, theirs = (" x ".join(map(str, shape)) for shape in (self.image_shape, trained.image_shape))
            raise ValueError(f"the classifier is of images of {ours}, the diffusion model of {theirs}")
        ours, theirs = self.schedule.alphas_cumprod_float64, trained.schedule.alphas_cumprod_float64
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=0, atol=SAME):
            raise ValueError(
                "the classifier learned from the noise of another schedule than the diffusion model: train it with the "
                "same --schedule options"
            )

    def check_finite(self) -> None:
        """Whether all parameters are numbers.

        Raises:
          ValueError: some are NaN or infinite; says how many, and where.
        """
        check_finite({"params": self.params})


def check_labels(y: jax.Array | np.ndarray, num_classes: int) -> None:
    """Whether y is [B] int, and where its numbers are known, each in [0, num_classes).

    Raises:
      ValueError: it is not.
    """
    if y.ndim != 1 or not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(f"y must be [B] int, got {y.dtype}{list(y.shape)}")
    if not isinstance(y, Tracer):
        outside = [int(each) for each in np.asarray(y) if not 0 <= each < num_classes]
        if outside:
            raise ValueError(f"y must lie in [0, {num_classes}), the classes of the classifier, got {outside[0]}")
