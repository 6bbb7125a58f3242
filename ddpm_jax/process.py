"""The forward process q and one reverse step p, on batches.

  q(x_t | x_0)           = N(sqrt(ac_t) x_0, (1 - ac_t) I)            Ho et al. 2020 (arXiv:2006.11239), eq. 4
  q(x_{t-1} | x_t, x_0)  = N(coef1_t x_0 + coef2_t x_t, beta_tilde_t I)                               eq. 6-7
  p(x_{t-1} | x_t)       = q(x_{t-1} | x_t, pred_x_0) with a variance of its own                   section 3.2

ac is schedule.alphas_cumprod. t is 0-based: t = 0 has been diffused once, and "x_{t-1}" at t = 0 is the clean x_0.
Every function is written for one example, then vmapped over [B, ...] and jitted. Names of what a network predicts:
  "eps"     the noise            x_t = sqrt(ac) x_0 + sqrt(1 - ac) eps
  "x_0"     the clean data
  "v"       sqrt(ac) eps - sqrt(1 - ac) x_0                        Salimans & Ho 2022 (arXiv:2202.00512), appendix D
  "x_prev"  the mean of x_{t-1}
  "score"   grad log q(x_t | x_0) = -eps / sqrt(1 - ac)               Song et al. 2021 (arXiv:2011.13456), section 3.3
Names of the variance of p:
  "fixed_small"    beta_tilde_t
  "fixed_large"    beta_t, but beta_tilde_1 at t = 0, which is the scale of the decoder (no noise is added there)
  "learned"        exp(v)                                                                             v is the second
  "learned_range"  exp(f log beta_t + (1 - f) log beta_tilde_t), f = (v + 1) / 2                 half of the output
                   Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 15; at t = 0 its beta_tilde is that of t = 1
With a learned variance the output is [..., 2C]: along the last axis first the prediction, then v.
Shapes and dtypes are checked while tracing. Not checked: that t lies in [0, T); JAX clamps such an index silently.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.names import unknown
from ddpm_jax.schedules import Schedule

PredictionType = Literal["eps", "x_0", "v", "x_prev", "score"]
VarianceType = Literal["fixed_small", "fixed_large", "learned", "learned_range"]
LEARNED = ("learned", "learned_range")
# model_fn(x_t [B, ..., C], t [B] float32) -> like x_t, or [B, ..., 2C] with a learned variance
ModelFn = Callable[[jax.Array, jax.Array], jax.Array]


class Prediction(NamedTuple):
    """What the network says about x_0 and about eps; both like x_t."""

    x_0: jax.Array
    eps: jax.Array


class Posterior(NamedTuple):
    """A Gaussian, most often over x_{t-1}: mean [B, ...]; variance and its natural log [B, 1, ..., 1]."""

    mean: jax.Array
    variance: jax.Array
    log_variance: jax.Array


class PMeanVariance(NamedTuple):
    """p(x_{t-1} | x_t) and the pred_x_0 its mean came from (clipped, if it was).

    variance and log_variance are [B, 1, ..., 1], and like the mean if they are learned.
    """

    mean: jax.Array
    variance: jax.Array
    log_variance: jax.Array
    pred_x_0: jax.Array


P = ParamSpec("P")
R = TypeVar("R")


def batched(*images: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """function(schedule, one example) -> function(schedule, [B, ...]), jitted; `images` are the arguments like x_0.

    Keyword-only arguments are Python values, fixed while tracing.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        options = [name for name, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY]

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            given = signature.bind(*args, **kwargs).arguments
            static = {name: given.pop(name) for name in options if name in given}
            _check(given, images, static.get("variance", "fixed_large"))
            schedule = given.pop("schedule")
            one = lambda arrays: function(schedule, **arrays, **static)  # type: ignore[reportCallIssue]
            return jax.vmap(one)(given)

        return jax.jit(checked, static_argnames=options)

    return decorate


def _check(given: dict[str, Any], images: tuple[str, ...], variance: str) -> None:
    if not isinstance(given["schedule"], Schedule):
        raise TypeError(f"schedule must be a Schedule, got {jax.typeof(given['schedule'])}")
    first = given[images[0]]
    if first.ndim < 1 or not jnp.issubdtype(first.dtype, jnp.floating):
        raise ValueError(f"{images[0]} must be [B, ...] floating point, got {first.dtype} {first.shape}")
    for name in images:
        if given[name].shape != first.shape or given[name].dtype != first.dtype:
            raise ValueError(
                f"{name} must be like {images[0]}, {first.dtype} {first.shape}, "
                f"got {given[name].dtype} {given[name].shape}"
            )
    if "output" in given:
        check_output(first, given["output"], variance)
    t = given["t"]
    if t.shape != first.shape[:1] or not jnp.issubdtype(t.dtype, jnp.integer):
        raise ValueError(f"t must be [B] integers, here [{first.shape[0]}], got {t.dtype} {t.shape}")


def check_output(x_t: jax.Array, output: jax.Array, variance: str) -> None:
    """Raises ValueError unless output is like x_t, with a learned variance [..., 2C] for [..., C]; unknown variance."""
    if variance not in get_args(VarianceType):
        raise unknown("variance", variance, get_args(VarianceType))
    shape, like = x_t.shape, "like x_t"
    if variance in LEARNED:
        shape, like = (*shape[:-1], 2 * shape[-1]), f"twice as large as x_t along the last axis ({variance} variance)"
    if output.shape != shape or output.dtype != x_t.dtype:
        raise ValueError(f"output must be {like}, {x_t.dtype} {shape}, got {output.dtype} {output.shape}")


def _at(table: jax.Array, t: jax.Array, like: jax.Array) -> jax.Array:
    """table[t] in the dtype of the images, so that float64 images stay float64."""
    return table[t].astype(like.dtype)


@batched("x_0", "eps")
def q_sample(schedule: Schedule, x_0: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
    """x_t = sqrt(ac_t) x_0 + sqrt(1 - ac_t) eps, a sample of q(x_t | x_0) if eps ~ N(0, I).

    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 4.

    Args:
      schedule: Schedule of length T.
      x_0: [B, ...] clean data, usually scaled to [-1, 1].
      t: [B] int in [0, T).
      eps: like x_0.

    Returns:
      x_t, like x_0.

    Raises:
      ValueError: shapes or dtypes of x_0 and eps differ, or t is not [B] integers.
    """
    return _at(schedule.sqrt_alphas_cumprod, t, x_0) * x_0 + _at(schedule.sqrt_one_minus_alphas_cumprod, t, x_0) * eps


@batched("x_0")
def q_mean_variance(schedule: Schedule, x_0: jax.Array, t: jax.Array) -> Posterior:
    """q(x_t | x_0) = N(sqrt(ac_t) x_0, (1 - ac_t) I).

    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 4.

    Raises:
      ValueError: as q_sample.
    """
    variance = _at(schedule.one_minus_alphas_cumprod, t, x_0).reshape((1,) * x_0.ndim)
    return Posterior(_at(schedule.sqrt_alphas_cumprod, t, x_0) * x_0, variance, jnp.log(variance))


@batched("x_0", "eps")
def velocity(schedule: Schedule, x_0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
    """v = sqrt(ac_t) eps - sqrt(1 - ac_t) x_0.

    Source: Salimans & Ho 2022 (arXiv:2202.00512), appendix D.

    Args:
      schedule: Schedule of length T.
      x_0: [B, ...] clean data.
      eps: like x_0.
      t: [B] int in [0, T).

    Raises:
      ValueError: as q_sample.
    """
    return _at(schedule.sqrt_alphas_cumprod, t, x_0) * eps - _at(schedule.sqrt_one_minus_alphas_cumprod, t, x_0) * x_0


@batched("x_0", "x_t")
def q_posterior(schedule: Schedule, x_0: jax.Array, x_t: jax.Array, t: jax.Array) -> Posterior:
    """q(x_{t-1} | x_t, x_0) = N(coef1_t x_0 + coef2_t x_t, beta_tilde_t I).

    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 6-7. The paper counts t from 1; here t = 0 is its t = 1.

    Args:
      schedule: Schedule of length T.
      x_0: [B, ...] clean data.
      x_t: like x_0.
      t: [B] int in [0, T).

    Returns:
      Posterior. At t = 0 the variance is exactly 0 and log_variance is its value at t = 1.

    Raises:
      ValueError: as q_sample.

    Example:
      >>> from ddpm_jax import schedules
      >>> x = jnp.zeros((2, 8, 8, 3))
      >>> mean, variance, _ = q_posterior(schedules.linear(4), x, x, jnp.zeros(2, jnp.int32))
      >>> mean.shape, variance.shape
      ((2, 8, 8, 3), (2, 1, 1, 1))
    """
    return _q_posterior(schedule, x_0, x_t, t)


def _q_posterior(schedule: Schedule, x_0: jax.Array, x_t: jax.Array, t: jax.Array) -> Posterior:
    at = lambda table: _at(table, t, x_t)
    keepdims = (1,) * x_t.ndim
    return Posterior(
        at(schedule.posterior_mean_coef1) * x_0 + at(schedule.posterior_mean_coef2) * x_t,
        at(schedule.posterior_variance).reshape(keepdims),
        at(schedule.posterior_log_variance_clipped).reshape(keepdims),
    )


def _predict(schedule: Schedule, x_t: jax.Array, t: jax.Array, output: jax.Array, prediction: str) -> Prediction:
    if prediction in ("eps", "score") and schedule.betas_float64[-1] == 1:
        raise ValueError(
            f"prediction {prediction!r} says nothing about x_0 at zero terminal signal-to-noise ratio "
            "(betas[-1] = 1): use 'v', 'x_0' or 'x_prev'"
        )
    at = lambda table: _at(table, t, x_t)
    alpha, sigma = at(schedule.sqrt_alphas_cumprod), at(schedule.sqrt_one_minus_alphas_cumprod)
    if prediction == "v":
        return Prediction(x_0=alpha * x_t - sigma * output, eps=sigma * x_t + alpha * output)
    if prediction in ("eps", "score"):
        eps = output if prediction == "eps" else -sigma * output
        x_0 = at(schedule.sqrt_recip_alphas_cumprod) * x_t - at(schedule.sqrt_recipm1_alphas_cumprod) * eps
        return Prediction(x_0, eps)
    if prediction == "x_0":
        x_0 = output
    elif prediction == "x_prev":
        x_0 = (output - at(schedule.posterior_mean_coef2) * x_t) / at(schedule.posterior_mean_coef1)
    else:
        raise unknown("prediction", prediction, get_args(PredictionType))
    return Prediction(x_0, (x_t - alpha * x_0) / sigma)


@batched("x_t")
def predict(
    schedule: Schedule, x_t: jax.Array, t: jax.Array, output: jax.Array, *, prediction: PredictionType = "eps"
) -> Prediction:
    """(pred_x_0, pred_eps) with x_t = sqrt(ac_t) pred_x_0 + sqrt(1 - ac_t) pred_eps, from what a network returned.

    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 15 for "eps"; module docstring for the others.

    Args:
      schedule: Schedule of length T.
      x_t: [B, ...].
      t: [B] int in [0, T).
      output: like x_t, what the network returned.
      prediction: what that is.

    Returns:
      Prediction; nothing is clipped.

    Raises:
      ValueError: as q_sample; unknown prediction; "eps" or "score" with a schedule that ends in alphas_cumprod = 0.
    """
    return _predict(schedule, x_t, t, output, prediction)


@batched("x_0", "eps")
def target(
    schedule: Schedule, x_0: jax.Array, t: jax.Array, eps: jax.Array, *, prediction: PredictionType = "eps"
) -> jax.Array:
    """What a network that knows x_0 and eps returns at x_t = sqrt(ac_t) x_0 + sqrt(1 - ac_t) eps.

    The inverse of `predict`; defined for every prediction at every t, also where ac_t = 0.

    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 7 for "x_prev"; module docstring for the others.

    Args:
      schedule: Schedule of length T.
      x_0: [B, ...] clean data.
      t: [B] int in [0, T).
      eps: like x_0.
      prediction: what the network predicts.

    Raises:
      ValueError: as q_sample; unknown prediction.
    """
    alpha, sigma = _at(schedule.sqrt_alphas_cumprod, t, x_0), _at(schedule.sqrt_one_minus_alphas_cumprod, t, x_0)
    if prediction == "eps":
        return eps
    if prediction == "x_0":
        return x_0
    if prediction == "v":
        return alpha * eps - sigma * x_0
    if prediction == "score":
        return -eps / sigma
    if prediction == "x_prev":
        return _q_posterior(schedule, x_0, alpha * x_0 + sigma * eps, t).mean
    raise unknown("prediction", prediction, get_args(PredictionType))


@batched("x_t")
def p_mean_variance(
    schedule: Schedule,
    x_t: jax.Array,
    t: jax.Array,
    output: jax.Array,
    *,
    prediction: PredictionType = "eps",
    variance: VarianceType = "fixed_large",
    clip: float | None = 1.0,
) -> PMeanVariance:
    """p(x_{t-1} | x_t) = N(coef1_t pred_x_0 + coef2_t x_t, variance_t I).

    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 6-7 with pred_x_0 for x_0 (as their code), fixed variances of
    section 3.2; Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 15 for "learned_range", their code for "learned".

    Args:
      schedule: Schedule of length T.
      x_t: [B, ..., C].
      t: [B] int in [0, T).
      output: what the network returned, like x_t; [B, ..., 2C] with a learned variance, the prediction first.
      prediction: what that is. With "x_prev" the output itself is the mean and clip only changes pred_x_0.
      variance: module docstring.
      clip: pred_x_0 is clipped to [-clip, clip]; None leaves it.

    Returns:
      PMeanVariance.

    Raises:
      ValueError: as `predict`; unknown variance; clip not positive.
    """
    return _p_mean_variance(schedule, x_t, t, output, prediction, variance, clip)


def _p_mean_variance(
    schedule: Schedule,
    x_t: jax.Array,
    t: jax.Array,
    output: jax.Array,
    prediction: str,
    variance: str,
    clip: float | None,
) -> PMeanVariance:
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive or None, got {clip}")
    output, v = jnp.split(output, 2, axis=-1) if variance in LEARNED else (output, output)  # no v is looked at then
    x_0 = _predict(schedule, x_t, t, output, prediction).x_0
    if clip is not None:
        x_0 = jnp.clip(x_0, -clip, clip)
    mean, small, log_small = _q_posterior(schedule, x_0, x_t, t)
    if prediction == "x_prev":
        mean = output
    # The logarithm in float64: of a float32 beta near 1 it would be wrong in the fifth digit.
    log_beta = _at(jnp.asarray(np.log(schedule.betas_float64), jnp.float32), t, x_t)
    if variance == "fixed_small":
        return PMeanVariance(mean, small, log_small, x_0)
    if variance == "fixed_large":
        log_variance = jnp.where(t == 0, log_small, log_beta)
    elif variance == "learned":
        log_variance = v
    else:
        fraction = (v + 1) / 2
        log_variance = fraction * log_beta + (1 - fraction) * log_small
    return PMeanVariance(mean, jnp.exp(log_variance), log_variance, x_0)


@batched("x_t", "z")
def p_step(
    schedule: Schedule,
    x_t: jax.Array,
    t: jax.Array,
    output: jax.Array,
    z: jax.Array,
    *,
    prediction: PredictionType = "eps",
    variance: VarianceType = "fixed_large",
    clip: float | None = 1.0,
) -> jax.Array:
    """x_{t-1} = mean + [t > 0] sqrt(variance) z, a sample of p(x_{t-1} | x_t) if z ~ N(0, I).

    Source: Ho et al. 2020 (arXiv:2006.11239), algorithm 2.

    Args:
      z: like x_t; the rest as p_mean_variance.

    Returns:
      x_{t-1}, like x_t; at t = 0 the mean.

    Raises:
      ValueError: as p_mean_variance.
    """
    mean, _, log_variance, _ = _p_mean_variance(schedule, x_t, t, output, prediction, variance, clip)
    return mean + jnp.where(t == 0, 0, jnp.exp(0.5 * log_variance)) * z
