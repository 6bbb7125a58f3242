"""What a network's output means, as one value: its channels, its target, (x_0, eps) of it, what samplers call.

  prediction   "eps" | "x_0" | "v" | "x_prev" | "score"     as in process
               "edm"                the F of Karras' preconditioned network: it is shown x_t / std, and
                                    (x_0 / sigma_data, eps) is (x_t / std, F) turned by an angle
  variance     "fixed_small" | "fixed_large" | "learned" | "learned_range"     as in process
               "learned_variance"   the second half is the variance itself, where "learned" has its logarithm
  clip or threshold                 what is done to x_0 at each step of a sampler

A model_fn is told the times of the schedule, as everywhere here; `Reading.model_fn` makes one of a network that was
trained on times of another scale.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from ddpm_jax import objectives, process
from ddpm_jax.names import unknown
from ddpm_jax.process import LEARNED, ModelFn, PredictionType
from ddpm_jax.samplers import denoise
from ddpm_jax.samplers.denoise import Denoise
from ddpm_jax.samplers.run import check_ends
from ddpm_jax.samplers.table import Table
from ddpm_jax.schedules import Schedule

ReadingPrediction = Literal[PredictionType, "edm"]
ReadingVariance = Literal[process.VarianceType, "learned_variance"]
MakeDenoise = Callable[[ModelFn], Denoise]
PIXEL = jax.ShapeDtypeStruct((1, 1), jnp.float32)


class InProcess(NamedTuple):
    """A network as one that `process`, `objectives` and likelihoods know, and what it returns there."""

    model_fn: ModelFn
    prediction: PredictionType
    variance: process.VarianceType


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a network's output means.

    Attributes:
      prediction: what it predicts.
      variance: of the reverse step; with a learned one the output has twice the channels, the prediction first.
      clip: samplers clip x_0 to [-clip, clip]; None for no clipping.
      threshold: (ratio, max_value) of `samplers.thresholded`, instead of clip; None for none.
      sigma_data: standard deviation of the data; of "edm" only, which needs it.
      time_scale: the network is told time_scale times the timestep of the schedule.

    Raises:
      ValueError: unknown names; numbers out of range; settings that do not go together.

    Example:
      >>> from ddpm_jax import samplers, schedules
      >>> schedule, reading = schedules.linear(4), Reading("v", "learned_range", clip=1.0)
      >>> reading.channels(3)
      6
      >>> denoise = reading.denoiser(schedule)(lambda x, t: jnp.concatenate([-x, 0 * x], axis=-1))
      >>> table = samplers.ddpm(samplers.grids.leading(schedule, 4), variance=reading.process_variance)
      >>> samplers.sample(denoise, table, jax.random.key(0), (2, 8, 8, 3)).shape
      (2, 8, 8, 3)
    """

    prediction: ReadingPrediction = "eps"
    variance: ReadingVariance = "fixed_large"
    clip: float | None = None
    threshold: tuple[float, float] | None = None
    sigma_data: float | None = None
    time_scale: float = 1.0

    def __post_init__(self):
        for name, allowed in (("prediction", ReadingPrediction), ("variance", ReadingVariance)):
            if getattr(self, name) not in get_args(allowed):
                raise unknown(name, getattr(self, name), get_args(allowed))
        if self.clip is not None:
            if self.threshold is not None:
                raise ValueError(f"give either clip or threshold, got {self.clip} and {self.threshold}")
            denoise.check_clip(self.clip)
        if self.threshold is not None:
            denoise.check_threshold(*self.threshold)
        if self.prediction == "edm" and self.learns_variance:
            raise ValueError(f"prediction 'edm' has no half for a variance, got variance {self.variance!r}")
        if (self.prediction == "edm") != (self.sigma_data is not None):
            raise ValueError(f"sigma_data is for prediction 'edm', got {self.sigma_data} with {self.prediction!r}")
        if self.sigma_data is not None and not 0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data must be positive, got {self.sigma_data}")
        if not 0 < self.time_scale < math.inf:
            raise ValueError(f"time_scale must be positive, got {self.time_scale}")

    @property
    def learns_variance(self) -> bool:
        """Whether half of the output is for the variance."""
        return self.process_variance in LEARNED

    @property
    def process_variance(self) -> process.VarianceType:
        """The variance as process and the catalogue of samplers name it."""
        return "learned" if self.variance == "learned_variance" else self.variance

    def channels(self, image_channels: int) -> int:
        """How many channels the output has for images of so many."""
        return image_channels * (2 if self.learns_variance else 1)

    def model_fn(self, network: ModelFn) -> ModelFn:
        """model_fn(x_t, t) = network(x_t, time_scale t): told the times of the schedule, as all of this package tells.

        Args:
          network: told times of its own.
        """
        if self.time_scale == 1:
            return network
        return lambda x_t, t: network(x_t, self.time_scale * t)

    def stand_in(self, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """A network that returns as many channels as one of this kind, to trace what is around the network at once."""
        return jnp.tile(x_t, self.channels(1))

    def target(self, schedule: Schedule, x_0: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
        """What a network that knows x_0 and eps returns at x_t = sqrt(ac_t) x_0 + sqrt(1 - ac_t) eps, like x_0.

        The variance has no target: the bound teaches it.

        Args:
          schedule: Schedule of length T.
          x_0: [B, ...] clean data.
          t: [B] int in [0, T).
          eps: like x_0.

        Raises:
          ValueError: as process.q_sample.
        """
        if self.prediction == "edm":
            assert self.sigma_data is not None  # checked when it was made
            return objectives.edm_target(schedule, x_0, t, eps, sigma_data=self.sigma_data)
        return process.target(schedule, x_0, t, eps, prediction=self.prediction)

    def predict(self, schedule: Schedule, x_t: jax.Array, t: jax.Array, output: jax.Array) -> process.Prediction:
        """(pred_x_0, pred_eps) with x_t = sqrt(ac_t) pred_x_0 + sqrt(1 - ac_t) pred_eps; nothing is clipped.

        Args:
          schedule: Schedule of length T.
          x_t: [B, ..., C].
          t: [B] int in [0, T).
          output: [B, ..., channels(C)], what the network returned; of "edm", for x_t / std.

        Raises:
          ValueError: an output of another shape; as process.predict.
        """
        process.check_output(x_t, output, self.process_variance)
        output = output[..., : x_t.shape[-1]]
        if self.prediction != "edm":
            return process.predict(schedule, x_t, t, output, prediction=self.prediction)
        assert self.sigma_data is not None
        column = lambda table: table[t].astype(x_t.dtype).reshape(-1, *(1,) * (x_t.ndim - 1))
        alpha, sigma = column(schedule.sqrt_alphas_cumprod), column(schedule.sqrt_one_minus_alphas_cumprod)
        scaled = x_t / jnp.hypot(sigma, self.sigma_data * alpha)
        return process.Prediction(*denoise.turned(scaled, output, alpha, sigma, self.sigma_data))

    def denoiser(self, schedule: Schedule) -> MakeDenoise:
        """From a model_fn of this kind to what samplers call: model_fn -> denoise(x, row) -> Denoised.

        Args:
          schedule: that of the training; only "x_prev" reads it.
        """
        return lambda model_fn: self._projected(self._denoise(model_fn, schedule))

    def _denoise(self, model_fn: ModelFn, schedule: Schedule) -> Denoise:
        if self.prediction == "edm":
            assert self.sigma_data is not None
            return denoise.preconditioned(model_fn, self.sigma_data)
        if self.variance == "learned_variance":
            model_fn = denoise.log_variance(model_fn)
        if self.prediction == "x_prev":
            return denoise.denoiser(denoise.x_0_from_mean(model_fn, schedule), "x_0", variance=self.process_variance)
        return denoise.denoiser(model_fn, self.prediction, variance=self.process_variance)

    def _projected(self, found: Denoise) -> Denoise:
        if self.threshold is not None:
            return denoise.thresholded(found, *self.threshold)
        return found if self.clip is None else denoise.clipped(found, self.clip)

    def check_table(self, schedule: Schedule, table: Table) -> None:
        """Whether a sampler visits levels at which the prediction says something, before there is a network.

        Raises:
          ValueError: eps or score at alpha = 0.
        """
        check_ends(self.denoiser(schedule)(self.stand_in), table, PIXEL)

    def in_process_terms(self, model_fn: ModelFn, schedule: Schedule) -> InProcess:
        """A model_fn of this kind as one that process, objectives and likelihoods know; clip goes to them by itself.

        Args:
          model_fn: of this kind.
          schedule: that of the training, or respaced from it.

        Raises:
          ValueError: a threshold, which no likelihood has.
        """
        if self.threshold is not None:
            raise ValueError(f"a likelihood clips x_0 or leaves it, got threshold {self.threshold}")
        if self.prediction == "edm":
            assert self.sigma_data is not None
            return InProcess(denoise.x_0_from_edm(model_fn, schedule, self.sigma_data), "x_0", self.process_variance)
        if self.variance == "learned_variance":
            model_fn = denoise.log_variance(model_fn)
        return InProcess(model_fn, self.prediction, self.process_variance)
