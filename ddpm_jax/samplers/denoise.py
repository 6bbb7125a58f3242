"""What a network says about x_0 and eps, as functions around functions: `denoise(x, row) -> Denoised`.

Prediction type, clipping, thresholding and learned variance are wrappers here, so that neither samplers nor the loop
have options for them. `row` gives the noise level of the call: x = row.alpha x_0 + row.sigma eps, and row.time, which
the network is told.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from ddpm_jax.names import unknown
from ddpm_jax.process import LEARNED, ModelFn, PredictionType, VarianceType
from ddpm_jax.samplers.table import Row
from ddpm_jax.schedules import Schedule


class Denoised(NamedTuple):
    """x = alpha x_0 + sigma eps + rest, all like x; noise_scale multiplies the noise of the row, None is 1.

    rest is None, which is 0, but for "raw" eps after clipping.
    """

    x_0: jax.Array
    eps: jax.Array
    noise_scale: jax.Array | None = None
    rest: jax.Array | None = None


Denoise = Callable[[jax.Array, Row], Denoised]


class Remembering(NamedTuple):
    """A denoiser that is told what it kept at the call before: guidance with a momentum, for example.

    Wrap a Denoise before it becomes one of these: what wraps Denoise does not pass a memory on.
    """

    start: Callable[[jax.ShapeDtypeStruct], Any]
    """From the shape and dtype of x to what is kept before the first call."""
    denoise: Callable[[jax.Array, Row, Any], tuple[Denoised, Any]]
    """(x, row, memory) -> (Denoised, memory of the same shapes and dtypes)."""


def remembering(denoise: Denoise | Remembering) -> Remembering:
    """Any denoiser as one that remembers: most keep nothing."""
    if isinstance(denoise, Remembering):
        return denoise
    return Remembering(lambda like: None, lambda x, row, memory: (denoise(x, row), memory))


EpsAfterClip = Literal["rederived", "raw"]


def denoiser(
    model_fn: ModelFn,
    prediction: PredictionType = "eps",
    clip: float | None = None,
    eps_after_clip: EpsAfterClip = "rederived",
    variance: VarianceType = "fixed_large",
) -> Denoise:
    """denoise(x, row) -> (x_0, eps) with x = alpha x_0 + sigma eps, from what the network predicts.

    Source: Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 15, for "learned_range".

    Args:
      model_fn: model_fn(x [B, ...], t [B] float32) -> like x; with a learned variance twice as large along the last
        axis, the prediction first.
      prediction: what that is; not "x_prev", whose x_0 needs a schedule: see `x_0_from_mean`.
      clip: x_0 is clipped to [-clip, clip]; None leaves it.
      eps_after_clip: as in `clipped`.
      variance: "learned": the second half is the log-variance; "learned_range": it is the v in [-1, 1] that
        interpolates between log beta_tilde and log beta. Samplers other than `ddpm` with the same variance ignore it.
        The fixed ones are the sampler's: they say that there is no second half.

    Raises:
      ValueError: unknown prediction or variance; clip not positive; while tracing, an output of another shape.
    """
    if prediction not in FROM_OUTPUT:
        raise unknown("prediction", prediction, FROM_OUTPUT)
    if variance not in get_args(VarianceType):
        raise unknown("variance", variance, get_args(VarianceType))
    from_output, learned = FROM_OUTPUT[prediction], variance in LEARNED

    def denoise(x: jax.Array, row: Row) -> Denoised:
        # The network's time is float32 whatever the images are: its embedding is.
        output = model_fn(x, jnp.full(x.shape[:1], row.time, jnp.float32))
        channels = x.shape[-1] * (2 if learned else 1)
        if output.shape != (*x.shape[:-1], channels):
            raise ValueError(
                f"with {variance} variance the network must return {(*x.shape[:-1], channels)}, got {output.shape}"
            )
        if not learned:
            return from_output(x, output, row)
        output, v = jnp.split(output, 2, axis=-1)
        # log of the standard deviation in units of the row's own; spread is 0 in rows that learn nothing.
        log_scale = row.spread * v / 2 if variance == "learned" else row.spread * (1 + v) / 4
        return from_output(x, output, row)._replace(noise_scale=jnp.exp(log_scale))

    return denoise if clip is None else clipped(denoise, clip, eps_after_clip)


def _from_eps(x: jax.Array, eps: jax.Array, row: Row) -> Denoised:
    if _is_zero(row.alpha):
        raise ValueError(
            f"eps says nothing about x_0 at time {row.time:g}, where alpha is 0 (zero terminal signal-to-noise ratio): "
            "predict v or x_0, or start the grid later"
        )
    return Denoised((x - row.sigma * eps) / row.alpha, eps)


def _from_score(x: jax.Array, score: jax.Array, row: Row) -> Denoised:
    return _from_eps(x, -row.sigma * score, row)


def _from_x_0(x: jax.Array, x_0: jax.Array, row: Row) -> Denoised:
    if _is_zero(row.sigma):
        raise ValueError(f"x_0 says nothing about eps at time {row.time:g}, where sigma is 0: predict v or eps")
    return Denoised(x_0, (x - row.alpha * x_0) / row.sigma)


def _from_v(x: jax.Array, v: jax.Array, row: Row) -> Denoised:
    return Denoised(row.alpha * x - row.sigma * v, row.sigma * x + row.alpha * v)


def _is_zero(value: object) -> bool:
    """Whether a number is 0; of a traced one nobody knows. `run.sample` asks with numbers where it can."""
    return isinstance(value, float) and value == 0


FROM_OUTPUT = {"eps": _from_eps, "x_0": _from_x_0, "v": _from_v, "score": _from_score}


def _told_at(schedule: Schedule, x: jax.Array, t: jax.Array, *tables: jax.Array) -> list[jax.Array]:
    """Tables of the schedule at the network's times t [B]; each [B, 1, ..., 1], between timesteps interpolated."""
    times, shape = schedule.timesteps.astype(t.dtype), (-1, *(1,) * (x.ndim - 1))
    return [jnp.interp(t, times, table.astype(t.dtype)).astype(x.dtype).reshape(shape) for table in tables]


def x_0_from_mean(model_fn: ModelFn, schedule: Schedule) -> ModelFn:
    """x_0 = (mean - coef2_t x) / coef1_t, from a network that learned the mean of x_{t-1} on this schedule ("x_prev").

    For any sampler, by denoiser(x_0_from_mean(model_fn, schedule), "x_0"); between two timesteps, where only some grids
    go, the coefficients are interpolated. See `mean_denoiser` for the mean of another step than the schedule's.

    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 7.

    Args:
      model_fn: what follows the C channels of the mean, such as a learned variance, is passed on.
      schedule: that of the training.
    """

    def x_0(x: jax.Array, t: jax.Array) -> jax.Array:
        coef1, coef2 = _told_at(schedule, x, t, schedule.posterior_mean_coef1, schedule.posterior_mean_coef2)
        output = model_fn(x, t)
        mean, rest = output[..., : x.shape[-1]], output[..., x.shape[-1] :]
        return jnp.concatenate([(mean - coef2 * x) / coef1, rest], axis=-1)

    return x_0


def x_0_from_edm(model_fn: ModelFn, schedule: Schedule, sigma_data: float = 0.5) -> ModelFn:
    """x_0 = c_skip x / alpha + c_out F(c_in x / alpha), from a network F trained by `objectives.edm`.

    For likelihoods; to sample, `preconditioned` knows the noise level of every row and needs no schedule.

    Source: Karras et al. 2022 (arXiv:2206.00364), eq. 7 and table 1.

    Args:
      model_fn: F.
      schedule: that of the training, or respaced from it; between two timesteps its tables are interpolated.
      sigma_data: as in `preconditioned`.
    """

    def x_0(x: jax.Array, t: jax.Array) -> jax.Array:
        tables = schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod
        alpha, sigma = _told_at(schedule, x, t, *tables)
        scaled = x / jnp.hypot(sigma, sigma_data * alpha)
        return turned(scaled, model_fn(scaled, t), alpha, sigma, sigma_data)[0]

    return x_0


def log_variance(model_fn: ModelFn) -> ModelFn:
    """A network that returns the variance itself, as those of diffusers, as one that returns its logarithm."""

    def log_model_fn(x: jax.Array, t: jax.Array) -> jax.Array:
        output, variance = jnp.split(model_fn(x, t), 2, axis=-1)
        return jnp.concatenate([output, jnp.log(variance)], axis=-1)

    return log_model_fn


def mean_coefficients(row: Row) -> tuple[jax.Array, jax.Array]:
    """(coef1, coef2) of q_posterior: a row of `ddpm` has X = coef1 x_0 + coef2 x and noise.

    Raises:
      ValueError: a row without them, such as a learned one. Those of other samplers are 0.
    """
    if row.mean is None:
        raise ValueError("only tables of samplers.ddpm have a mean, got one without")
    return row.mean[0], row.mean[1]


def mean_denoiser(model_fn: ModelFn) -> Denoise:
    """x_0 = (mean - coef2 x) / coef1, from a network that predicts the mean of x_{t-1} itself, as `ddpm` then has it.

    For tables of `ddpm` only: no other sampler has such a mean, and x_0 is not finite there.

    Source: Ho et al. 2020 (arXiv:2006.11239), section 3.2; "PREVIOUS_X" in the code of Nichol & Dhariwal 2021."""

    def denoise(x: jax.Array, row: Row) -> Denoised:
        coef1, coef2 = mean_coefficients(row)
        mean = model_fn(x, jnp.full(x.shape[:1], row.time, jnp.float32))
        return _from_x_0(x, (mean - coef2 * x) / coef1, row)

    return denoise


def projected(
    denoise: Denoise, project: Callable[[jax.Array], jax.Array], eps_after: EpsAfterClip = "rederived"
) -> Denoise:
    """x_0 replaced by project(x_0): clipping, thresholding, rounding to a codebook.

    Source: `denoised_fn` in the code of Nichol & Dhariwal 2021 (arXiv:2102.09672).

    Args:
      denoise: what to wrap.
      project: x_0 [B, ...] -> like x_0.
      eps_after: "rederived" solves x = alpha x_0 + sigma eps again with the new x_0 (OpenAI, lucidrains; diffusers'
        use_clipped_model_output=True); "raw" keeps the network's eps (diffusers' default in DDIM). Samplers that are
        written in x_0 and x, such as `ddpm`, are the same with both.

    Raises:
      ValueError: unknown eps_after.
    """
    if eps_after not in get_args(EpsAfterClip):
        raise unknown("eps_after_clip", eps_after, get_args(EpsAfterClip))

    def wrapped(x: jax.Array, row: Row) -> Denoised:
        found = denoise(x, row)
        x_0 = project(found.x_0)
        if eps_after == "rederived":
            return _from_x_0(x, x_0, row)._replace(noise_scale=found.noise_scale)
        return Denoised(x_0, found.eps, found.noise_scale, x - row.alpha * x_0 - row.sigma * found.eps)

    return wrapped


def clipped(denoise: Denoise, clip: float, eps_after_clip: EpsAfterClip = "rederived") -> Denoise:
    """x_0 clipped to [-clip, clip].

    Args:
      denoise: what to wrap.
      clip: positive.
      eps_after_clip: as eps_after in `projected`.

    Raises:
      ValueError: clip not positive; unknown eps_after_clip.
    """
    check_clip(clip)
    return projected(denoise, lambda x_0: jnp.clip(x_0, -clip, clip), eps_after_clip)


def check_clip(clip: float) -> None:
    """Raises ValueError: clip not positive."""
    if not clip > 0:
        raise ValueError(f"clip must be positive or None, got {clip}")


def thresholded(
    denoise: Denoise, ratio: float = 0.995, max_value: float = 1.0, eps_after_clip: EpsAfterClip = "rederived"
) -> Denoise:
    """x_0 clipped to [-s, s] and divided by s = min(max(quantile(|x_0|, ratio), 1), max_value), of each sample.

    Source: Saharia et al. 2022 (arXiv:2205.11487), section 2.3 ("dynamic thresholding"); max_value is diffusers'
    sample_max_value, whose default 1 makes this plain clipping.

    Args:
      denoise: what to wrap.
      ratio: in [0, 1].
      max_value: positive; below 1, s is always this.
      eps_after_clip: as eps_after in `projected`.

    Raises:
      ValueError: ratio outside [0, 1]; max_value not positive; unknown eps_after_clip.
    """
    check_threshold(ratio, max_value)

    def project(x_0: jax.Array) -> jax.Array:
        s = jnp.quantile(jnp.abs(x_0).reshape(len(x_0), -1), ratio, axis=1)
        s = jnp.clip(s, 1, max_value).reshape(-1, *(1,) * (x_0.ndim - 1))
        return jnp.clip(x_0, -s, s) / s

    return projected(denoise, project, eps_after_clip)


def check_threshold(ratio: float, max_value: float) -> None:
    """Raises ValueError: ratio outside [0, 1]; max_value not positive."""
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must lie in [0, 1], got {ratio}")
    if not max_value > 0:
        raise ValueError(f"max_value must be positive, got {max_value}")


def preconditioned(model_fn: ModelFn, sigma_data: float = 0.5, prediction: Literal["eps", "v"] = "eps") -> Denoise:
    """x_0 = c_skip x + c_out F(c_in x, time) at x = x_0 + s eps: Karras' preconditioning of a network F.

    c_skip = sigma_data^2 / (s^2 + sigma_data^2), c_out = s sigma_data / sqrt(s^2 + sigma_data^2) and
    c_in = 1 / sqrt(s^2 + sigma_data^2), with s = sigma / alpha of the row. On the levels of `sigma_grids.continuous`
    alpha is c_in, so X is what F takes in.

    Source: Karras et al. 2022 (arXiv:2206.00364), eq. 7 and table 1.

    Args:
      model_fn: F(x [B, ...], t [B] float32) -> like x.
      sigma_data: standard deviation of the data; positive.
      prediction: "eps" as in the paper; "v" has the opposite sign of c_out, as diffusers' EDM classes have it.

    Raises:
      ValueError: sigma_data not positive; unknown prediction.
    """
    if not sigma_data > 0:
        raise ValueError(f"sigma_data must be positive, got {sigma_data}")
    signs = {"eps": 1, "v": -1}
    if prediction not in signs:
        raise unknown("prediction", prediction, signs)

    def denoise(x: jax.Array, row: Row) -> Denoised:
        std = jnp.hypot(row.sigma, sigma_data * row.alpha)  # of X, where x_0 has standard deviation sigma_data
        scaled = x / std
        output = signs[prediction] * model_fn(scaled, jnp.full(x.shape[:1], row.time, jnp.float32))
        return Denoised(*turned(scaled, output, row.alpha, row.sigma, sigma_data))

    return denoise


def turned(
    scaled: jax.Array, output: jax.Array, alpha: jax.Array, sigma: jax.Array, sigma_data: float
) -> tuple[jax.Array, jax.Array]:
    """(x_0, eps): (x_0 / sigma_data, eps) is (x / std, F(x / std)) turned by an angle; nothing cancels at small sigma.

    Args:
      scaled: x / std, std^2 = sigma^2 + (sigma_data alpha)^2.
      output: F of it.
      alpha, sigma: of x = alpha x_0 + sigma eps.
      sigma_data: standard deviation of the data.
    """
    std = jnp.hypot(sigma, sigma_data * alpha)
    sine, cosine = sigma / std, sigma_data * alpha / std
    return sigma_data * (cosine * scaled + sine * output), sine * scaled - cosine * output


def consistency_denoiser(model_fn: ModelFn, sigma_min: float = 0.002, sigma_data: float = 0.5) -> Denoise:
    """x_0 = c_skip x + c_out F(x / sqrt(s^2 + sigma_data^2), time) at x = x_0 + s eps, which is x at s = sigma_min.

    c_skip = sigma_data^2 / ((s - sigma_min)^2 + sigma_data^2) and c_out = (s - sigma_min) sigma_data /
    sqrt(s^2 + sigma_data^2), with s = sigma / alpha of the row. X is what F takes in, on the levels of
    `sigma_grids.scaled`.

    Source: Song et al. 2023 (arXiv:2303.01469), appendix C.

    Args:
      model_fn: F(x [B, ...], t [B] float32) -> like x.
      sigma_min: the noise that an image has.
      sigma_data: standard deviation of the data; positive.

    Raises:
      ValueError: sigma_data not positive.
    """
    if not sigma_data > 0:
        raise ValueError(f"sigma_data must be positive, got {sigma_data}")

    def denoise(x: jax.Array, row: Row) -> Denoised:
        s, image = row.sigma / row.alpha, x / row.alpha
        std, above = jnp.hypot(s, sigma_data), s - sigma_min
        output = model_fn(image / std, jnp.full(x.shape[:1], row.time, jnp.float32))
        x_0 = sigma_data**2 / (above**2 + sigma_data**2) * image + above * sigma_data / std * output
        return _from_x_0(x, x_0, row)

    return denoise
