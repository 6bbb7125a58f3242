"""How much each t counts: weight(schedule, t, prediction) [B], which multiplies objectives.simple.

With E the mean squared error of x_0 and snr = ac / (1 - ac), the same error is, in what the network predicts,

  x_0   E                    v      (snr + 1) E               x_prev  coef1^2 E
  eps   snr E                score  snr (snr + 1) E

so a weight w on E is the weight w / factor on the loss of that prediction: what training minimizes does not depend on
what the network predicts. Only `uniform` leaves each loss as it is. Weights are tables, computed in float64.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.names import apply, choose
from ddpm_jax.process import PredictionType
from ddpm_jax.schedules import Schedule

Weight = Callable[[Schedule, jax.Array, PredictionType], jax.Array]

# Where snr = 0 the ratio of a weight and a factor is its limit. In float64 it has reached it long before 1e-100.
SMALLEST_SNR = 1e-100


def error_factor(schedule: Schedule, prediction: PredictionType) -> np.ndarray:
    """(loss of the prediction) / (squared error of x_0) at every t: float64 [T], NumPy. Nothing is 0: see SMALLEST_SNR.

    Raises:
      ValueError: unknown prediction.
    """
    snr = _snr(schedule)
    one_minus = schedule.one_minus_alphas_cumprod_float64
    alphas_cumprod_prev = np.append(1.0, schedule.alphas_cumprod_float64[:-1])
    factors = {
        "eps": snr,
        "x_0": np.ones_like(snr),
        "v": snr + 1,
        "x_prev": alphas_cumprod_prev * (schedule.betas_float64 / one_minus) ** 2,
        "score": snr * (snr + 1),
    }
    return choose("prediction", prediction, factors)


def _snr(schedule: Schedule) -> np.ndarray:
    return np.maximum(schedule.alphas_cumprod_float64 / schedule.one_minus_alphas_cumprod_float64, SMALLEST_SNR)


def on_x_0(weight_of_snr: Callable[[np.ndarray], np.ndarray]) -> Weight:
    """The weight weight_of_snr(snr) on the squared error of x_0."""

    def weight(schedule: Schedule, t: jax.Array, prediction: PredictionType) -> jax.Array:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            table = weight_of_snr(_snr(schedule)) / error_factor(schedule, prediction)
        too_large = ~(table <= np.finfo(np.float32).max)
        if too_large.any():
            raise ValueError(
                f"this weighting of {prediction!r} is infinite at t = {int(np.argmax(too_large))}, where its arguments "
                "are out of range or the schedule has zero signal-to-noise ratio: predict 'v' or 'x_0', or use "
                "min_snr, p2, snr or sigmoid"
            )
        return jnp.asarray(table, jnp.float32)[t]

    return weight


def uniform() -> Weight:
    """1, whatever the network predicts: L_simple.

    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 14.
    """
    return lambda schedule, t, prediction: jnp.ones(t.shape, jnp.float32)


def snr() -> Weight:
    """snr on x_0; 1 on eps; snr / (snr + 1) on v.

    Source: Salimans & Ho 2022 (arXiv:2202.00512), section 4, "SNR".
    """
    return on_x_0(lambda snr: snr)


def truncated_snr() -> Weight:
    """max(snr, 1) on x_0; max(1, 1 / snr) on eps; max(snr, 1) / (snr + 1) on v.

    Source: Salimans & Ho 2022 (arXiv:2202.00512), section 4, "truncated SNR".
    """
    return on_x_0(lambda snr: np.maximum(snr, 1))


def min_snr(*, gamma: float = 5.0) -> Weight:
    """min(snr, gamma) on x_0; min(1, gamma / snr) on eps; min(snr, gamma) / (snr + 1) on v.

    Source: Hang et al. 2023 (arXiv:2303.09556), section 3.4.

    Raises:
      ValueError: gamma not positive.
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be positive, got {gamma}")
    return on_x_0(lambda snr: np.minimum(snr, gamma))


def p2(*, k: float = 1.0, gamma: float = 1.0) -> Weight:
    """1 / (k + snr)^gamma on eps; snr times that on x_0; snr / (snr + 1) times that on v.

    Source: Choi et al. 2022 (arXiv:2204.00227), eq. 8.

    Raises:
      ValueError: k not positive.
    """
    if not k > 0:
        raise ValueError(f"k must be positive, got {k}")
    return on_x_0(lambda snr: snr / (k + snr) ** gamma)


def sigmoid(*, bias: float = 0.0) -> Weight:
    """sigma(bias - log snr) on eps; e^bias sigma(log snr - bias) on x_0; snr / (snr + 1) times the first on v.

    The papers integrate over log snr; here t is drawn from the schedule, which takes the place of -d log snr / dt.

    Source: Kingma & Gao 2023 (arXiv:2303.00848), section 4; Hoogeboom et al. 2024 (arXiv:2410.19324), section 3.
    """
    return on_x_0(lambda snr: snr / (1 + snr * np.exp(-bias)))


def edm(*, sigma_data: float = 0.5) -> Weight:
    """lambda(s) = (s^2 + sigma_data^2) / (s sigma_data)^2 = snr + 1 / sigma_data^2 on x_0, with s^2 = 1 / snr.

    On v with sigma_data = 1 it is 1. As the papers have it, it goes with s drawn log-normally.

    Source: Karras et al. 2022 (arXiv:2206.00364), table 1.

    Raises:
      ValueError: sigma_data not positive.
    """
    if not sigma_data > 0:
        raise ValueError(f"sigma_data must be positive, got {sigma_data}")
    return on_x_0(lambda snr: snr + np.float64(sigma_data) ** -2)


BY_NAME: dict[str, Callable[..., Weight]] = {
    function.__name__: function for function in (uniform, snr, truncated_snr, min_snr, p2, sigmoid, edm)
}
NAMES = tuple(BY_NAME)


def make(name: str, **arguments: float) -> Weight:
    """The function called `name` in this module, applied: for configurations.

    Raises:
      ValueError: no such weighting, an argument it does not take, or a number out of range.
    """
    return apply("weighting", name, BY_NAME, **arguments)
