"""What training minimizes and what likelihoods are made of, one number per example.

  simple   squared error of the prediction, mean over pixels
  vlb      one term of the variational bound, bits per dimension:  L_t = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)),
           and at t = 0 the decoder's -log p(x_0 | x_1)
  hybrid   simple + vlb_weight vlb, where vlb teaches the variance alone
  edm      the weighted error of a network preconditioned as in EDM
  classification   -log p(y | x_t, t), nats, of a classifier of noisy images
A whole bound is the sum of vlb over t plus prior_bits_per_dim. Weights of t multiply the result: weightings.py.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import process
from ddpm_jax.process import LEARNED, ModelFn, PredictionType, VarianceType
from ddpm_jax.schedules import Schedule
from ddpm_jax.special import gaussians

SIGMA_DATA = 0.5  # of images in [-1, 1], in Karras et al. 2022 (arXiv:2206.00364)


class VlbTerm(NamedTuple):
    """One term of the bound, [B], and the pred_x_0 it came from, like x_t."""

    bits_per_dim: jax.Array
    pred_x_0: jax.Array


class HybridTerms(NamedTuple):
    """total = simple + vlb_weight vlb, [B] each, of one call of the network; vlb in bits per dimension."""

    total: jax.Array
    simple: jax.Array
    vlb: jax.Array


class Classified(NamedTuple):
    """-log p(y | x_t, t) in nats, and whether no class is likelier than y, 1 or 0; [B] float32 each."""

    loss: jax.Array
    correct: jax.Array


def mean_over_pixels(x: jax.Array) -> jax.Array:
    """[B, ...] -> [B]."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def simple(
    model_fn: ModelFn,
    schedule: Schedule,
    x_0: jax.Array,
    t: jax.Array,
    eps: jax.Array,
    *,
    prediction: PredictionType = "eps",
    variance: VarianceType = "fixed_large",
) -> jax.Array:
    """L_simple = mean over pixels of (target - model_fn(x_t, t))^2,  x_t = sqrt(ac_t) x_0 + sqrt(1 - ac_t) eps.

    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 14. The paper sums over pixels; its code, like everyone's, averages.

    Args:
      model_fn: model_fn(x_t [B, ...], t [B] float32) -> like x_t; told schedule.timesteps[t]. With a learned variance
        [B, ..., 2C], of which only the first half counts here.
      schedule: Schedule of length T.
      x_0: [B, ...] clean data.
      t: [B] int in [0, T).
      eps: like x_0, standard normal.
      prediction: what the network predicts; the target is process.target.
      variance: whether the network has a half for the variance.

    Returns:
      [B], in the dtype of x_0.

    Raises:
      ValueError: as process.target; unknown variance; a network whose output is of another shape.
    """
    _, output = _call(model_fn, schedule, x_0, t, eps, variance)
    return _squared_error(schedule, x_0, t, eps, output, prediction)


def vlb_term(
    schedule: Schedule,
    x_0: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    output: jax.Array,
    *,
    prediction: PredictionType = "eps",
    variance: VarianceType = "fixed_large",
    clip: float | None = 1.0,
) -> VlbTerm:
    """L_t = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 0,  L_0 = -log p(x_0 | x_1); bits per dimension.

    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 5 and 13; t = 0 is the paper's t = 1.

    Args:
      schedule: Schedule of length T.
      x_0: [B, ...] 8-bit data scaled to [-1, 1].
      x_t: like x_0.
      t: [B] int in [0, T).
      output: what the network returned for x_t.
      prediction, variance, clip: as process.p_mean_variance.

    Raises:
      ValueError: as process.p_mean_variance; x_0 outside [-1, 1], where that is known (not while tracing).
    """
    q = process.q_posterior(schedule, x_0, x_t, t)
    p = process.p_mean_variance(schedule, x_t, t, output, prediction=prediction, variance=variance, clip=clip)
    kl = gaussians.kl_nats(q.mean, q.log_variance, p.mean, p.log_variance)
    decoder = -gaussians.discretized_log_likelihood(x_0, p.mean, p.log_variance)
    nats = jnp.where(t == 0, mean_over_pixels(decoder), mean_over_pixels(kl))
    return VlbTerm(nats / math.log(2), p.pred_x_0)


def prior_bits_per_dim(schedule: Schedule, x_0: jax.Array) -> jax.Array:
    """L_T = KL(q(x_T | x_0) || N(0, I)), bits per dimension: what no network can change.

    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 5.

    Args:
      schedule: Schedule of length T.
      x_0: [B, ...] clean data.

    Returns:
      [B].
    """
    mean = float(np.sqrt(schedule.alphas_cumprod_float64[-1])) * x_0
    log_variance = float(np.log(schedule.one_minus_alphas_cumprod_float64[-1]))
    return mean_over_pixels(gaussians.kl_nats(mean, log_variance, 0.0, 0.0)) / math.log(2)


def vlb(
    model_fn: ModelFn,
    schedule: Schedule,
    x_0: jax.Array,
    t: jax.Array,
    eps: jax.Array,
    *,
    prediction: PredictionType = "eps",
    variance: VarianceType = "fixed_large",
) -> jax.Array:
    """The single term L_t of the variational bound at x_t = q_sample(x_0, t, eps), bits per dimension, nothing clipped.

    T times it, t uniform, estimates the whole bound but for the prior: "RESCALED_KL" in OpenAI's code; this is "KL".

    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 5; Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 4-7.

    Args:
      As `simple`, and x_0 is 8-bit data scaled to [-1, 1].

    Returns:
      [B].

    Raises:
      ValueError: as `vlb_term`; a network whose output is of another shape.
    """
    x_t, output = _call(model_fn, schedule, x_0, t, eps, variance)
    return vlb_term(schedule, x_0, x_t, t, output, prediction=prediction, variance=variance, clip=None).bits_per_dim


def hybrid(
    model_fn: ModelFn,
    schedule: Schedule,
    x_0: jax.Array,
    t: jax.Array,
    eps: jax.Array,
    *,
    prediction: PredictionType = "eps",
    variance: VarianceType = "learned_range",
    vlb_weight: float | None = None,
) -> jax.Array:
    """L_hybrid = simple + vlb_weight vlb, with the mean of p held fixed in vlb.

    The paper's lambda is 0.001 and multiplies the whole bound, a sum of T terms. One term at a uniform t stands for
    1 / T of that sum, so lambda becomes vlb_weight = 0.001 T: the default here, and "RESCALED_MSE" in OpenAI's code.
    Their "MSE" has vlb_weight = 1, the same at T = 1000. (The paper's L_vlb is in nats per image or bits per dimension
    as one likes; the code's, and this, is in bits per dimension.)

    Source: Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 16 and section 3.1.

    Args:
      vlb_weight: of the single term; None is schedule.num_timesteps / 1000.
      variance: "learned" or "learned_range". With a fixed one vlb would have no gradient at all.
      The others as `vlb`.

    Returns:
      [B].

    Raises:
      ValueError: as `vlb`; a variance that is not learned.
    """
    return hybrid_terms(
        model_fn, schedule, x_0, t, eps, prediction=prediction, variance=variance, vlb_weight=vlb_weight
    ).total


def hybrid_terms(
    model_fn: ModelFn,
    schedule: Schedule,
    x_0: jax.Array,
    t: jax.Array,
    eps: jax.Array,
    *,
    prediction: PredictionType = "eps",
    variance: VarianceType = "learned_range",
    vlb_weight: float | None = None,
) -> HybridTerms:
    """`hybrid` and what it is the sum of; arguments and errors are its own."""
    if variance not in LEARNED:
        raise ValueError(f"hybrid learns the variance: it must be one of {', '.join(LEARNED)}, got {variance!r}")
    if vlb_weight is None:
        vlb_weight = schedule.num_timesteps / 1000
    x_t, output = _call(model_fn, schedule, x_0, t, eps, variance)
    mean, v = jnp.split(output, 2, axis=-1)
    frozen = jnp.concatenate([jax.lax.stop_gradient(mean), v], axis=-1)
    term = vlb_term(schedule, x_0, x_t, t, frozen, prediction=prediction, variance=variance, clip=None)
    simple = _squared_error(schedule, x_0, t, eps, output, prediction)
    return HybridTerms(simple + vlb_weight * term.bits_per_dim, simple, term.bits_per_dim)


def edm(
    model_fn: ModelFn,
    schedule: Schedule,
    x_0: jax.Array,
    t: jax.Array,
    eps: jax.Array,
    *,
    sigma_data: float = SIGMA_DATA,
) -> jax.Array:
    """lambda(s) (D(x_t / alpha; s) - x_0)^2 at s = sigma / alpha: the loss of EDM's network F on a Schedule's levels.

    alpha = sqrt(ac_t), sigma = sqrt(1 - ac_t). As lambda c_out^2 = 1 it is the mean over pixels of

        (F(x_t / std) - (sigma x_0 / sigma_data - sigma_data alpha eps) / std)^2, std^2 = sigma^2 + (sigma_data alpha)^2

    which stays finite where alpha = 0. With sigma_data = 1 this is `simple` of -v. `samplers.preconditioned` samples
    from F with every table; `timesteps.lognormal` draws t as the paper draws sigma.

    Source: Karras et al. 2022 (arXiv:2206.00364), eq. 7-8 and appendix B.6.

    Args:
      model_fn: F; told c_in x_t / alpha = x_t / std and schedule.timesteps[t].
      sigma_data: standard deviation of the data; positive.
      The others as `simple`.

    Returns:
      [B].

    Raises:
      ValueError: as `simple`; sigma_data not positive.
    """
    if not sigma_data > 0:
        raise ValueError(f"sigma_data must be positive, got {sigma_data}")
    _, _, std = _levels(schedule, x_0, t, sigma_data)
    scaled = process.q_sample(schedule, x_0, t, eps) / std
    output = model_fn(scaled, schedule.timesteps[t].astype(jnp.float32))
    process.check_output(scaled, output, "fixed_large")
    return mean_over_pixels((output - edm_target(schedule, x_0, t, eps, sigma_data=sigma_data)) ** 2)


def edm_target(
    schedule: Schedule, x_0: jax.Array, t: jax.Array, eps: jax.Array, *, sigma_data: float = SIGMA_DATA
) -> jax.Array:
    """(sigma x_0 / sigma_data - sigma_data alpha eps) / std: what F returns if it knows x_0 and eps, see `edm`."""
    alpha, sigma, std = _levels(schedule, x_0, t, sigma_data)
    return (sigma / sigma_data * x_0 - sigma_data * alpha * eps) / std


def classification(
    model_fn: ModelFn, schedule: Schedule, x_0: jax.Array, t: jax.Array, eps: jax.Array, y: jax.Array
) -> Classified:
    """L = -log p(y | x_t, t),  x_t = sqrt(ac_t) x_0 + sqrt(1 - ac_t) eps.

    Source: Dhariwal & Nichol 2021 (arXiv:2105.05233), section 4.

    Args:
      model_fn: model_fn(x_t [B, ...], t [B] float32) -> logits [B, K]; told schedule.timesteps[t].
      y: [B] int in [0, K), the classes.
      The others as `simple`.

    Raises:
      ValueError: shapes or dtypes of x_0 and eps differ; y or what the network returns is of another shape.
    """
    x_t = process.q_sample(schedule, x_0, t, eps)
    logits = model_fn(x_t, schedule.timesteps[t].astype(jnp.float32))
    if y.shape != t.shape or logits.ndim != 2 or len(logits) != len(y):
        raise ValueError(
            f"y must be [B] and logits [B, K] with B = {len(t)}, got {list(y.shape)}, {list(logits.shape)}"
        )
    return Classified(-log_probs(logits, y), (jnp.argmax(logits, axis=1) == y).astype(jnp.float32))


def log_probs(logits: jax.Array, y: jax.Array) -> jax.Array:
    """log softmax(logits_b)[y_b], in nats, [B]; NaN for a y that is none of the classes."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)[:, 0]


def _levels(
    schedule: Schedule, x_0: jax.Array, t: jax.Array, sigma_data: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(alpha, sigma, std) at t, std that of x_t where x_0 has sigma_data; each [B, 1, ..., 1]."""
    column = lambda table: table[t].astype(x_0.dtype).reshape(-1, *(1,) * (x_0.ndim - 1))
    alpha, sigma = column(schedule.sqrt_alphas_cumprod), column(schedule.sqrt_one_minus_alphas_cumprod)
    return alpha, sigma, jnp.hypot(sigma, sigma_data * alpha)


def _call(
    model_fn: ModelFn, schedule: Schedule, x_0: jax.Array, t: jax.Array, eps: jax.Array, variance: str
) -> tuple[jax.Array, jax.Array]:
    """(x_t, what the network says of it)."""
    x_t = process.q_sample(schedule, x_0, t, eps)
    output = model_fn(x_t, schedule.timesteps[t].astype(jnp.float32))
    process.check_output(x_t, output, variance)
    return x_t, output


def _squared_error(
    schedule: Schedule, x_0: jax.Array, t: jax.Array, eps: jax.Array, output: jax.Array, prediction: PredictionType
) -> jax.Array:
    target = process.target(schedule, x_0, t, eps, prediction=prediction)
    return mean_over_pixels((target - output[..., : x_0.shape[-1]]) ** 2)
