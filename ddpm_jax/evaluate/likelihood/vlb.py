"""The whole variational bound on -log p(x_0), every term at every t.

  -log p(x_0) <= prior + sum over t of L_t        Ho et al. 2020 (arXiv:2006.11239), eq. 5
  prior  KL(q(x_T | x_0) || N(0, I))
  L_t    E KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 0, and the decoder's -log p(x_0 | x_1) at t = 0

in bits per dimension. t is 0-based. Each expectation is taken at one x_t per example and t, x_t ~ q(x_t | x_0).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax import objectives, process
from ddpm_jax.keys import example_keys
from ddpm_jax.process import LEARNED, ModelFn, PredictionType, VarianceType
from ddpm_jax.schedules import Schedule


class VlbTerms(NamedTuple):
    """What one pass says of each example; the columns of [B, T] are t = 0 .. T-1."""

    bits_per_dim: jax.Array  # [B, T] L_t; column 0 is the decoder
    prior_bits_per_dim: jax.Array  # [B]
    x_0_mse: jax.Array  # [B, T] mean over pixels of (x_0 - pred_x_0)^2, pred_x_0 clipped as p's is
    eps_mse: jax.Array  # [B, T] of (eps - pred_eps)^2 with that pred_x_0: SNR_t x_0_mse
    pred_eps_square: jax.Array  # [B, T] mean over pixels of pred_eps^2, nothing clipped

    @property
    def total_bits_per_dim(self) -> jax.Array:
        """[B] the bound: prior + sum of L_t."""
        return self.prior_bits_per_dim + jnp.sum(self.bits_per_dim, axis=1)


def vlb_terms(
    model_fn: ModelFn,
    schedule: Schedule,
    x_0: jax.Array,
    key: jax.Array | None = None,
    *,
    prediction: PredictionType = "eps",
    variance: VarianceType = "fixed_large",
    clip: float | None = 1.0,
    noise: jax.Array | None = None,
    first_index: int | jax.Array = 0,
) -> VlbTerms:
    """L_t, squared errors and size of the score for every example and every t, in one lax.scan over t. jit it.

    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 5 and section 3.3; bits and clipping as the code of Nichol & Dhariwal
    2021 (arXiv:2102.09672) has them.

    Args:
      model_fn: as in objectives.vlb_term; told schedule.timesteps[t].
      schedule: of length T; may be respaced, and the bound is then that of the strided process.
      x_0: [B, ...] 8-bit data scaled to [-1, 1].
      key: of the whole data set. Example i draws its eps at t from fold_in(fold_in(key, i), schedule.timesteps[t]), so
        the result does not depend on how the set is cut into batches, and strided processes see the same eps.
      prediction, variance, clip: as in process.p_mean_variance.
      noise: [T, B, ...] standard normal eps of every t instead of drawn ones.
      first_index: the global index i of the first example.

    Raises:
      ValueError: neither key nor noise; noise of another shape or dtype; as objectives.vlb_term: x_0 outside [-1, 1]
        (where that is known: not under jit), an output that does not fit the variance, a prediction that says nothing
        of x_0 at zero signal-to-noise ratio.
    """
    shape = (schedule.num_timesteps, *x_0.shape)
    if noise is None and key is None:
        raise ValueError("key must not be None unless noise is given")
    if noise is not None and (noise.shape != shape or noise.dtype != x_0.dtype):
        raise ValueError(f"noise must be {x_0.dtype} {shape}, got {noise.dtype} {noise.shape}")
    keys = None if key is None else example_keys(key, first_index, len(x_0))

    def eps_at(t: jax.Array, given: jax.Array | None) -> jax.Array:
        if given is not None:
            return given
        time = schedule.timesteps[t].astype(jnp.uint32)
        draw = lambda example_key: jax.random.normal(jax.random.fold_in(example_key, time), x_0.shape[1:], x_0.dtype)
        return jax.vmap(draw)(keys)

    def term(_: None, step: tuple[jax.Array, jax.Array | None]) -> tuple[None, tuple[jax.Array, ...]]:
        t = jnp.full(len(x_0), step[0])
        x_t = process.q_sample(schedule, x_0, t, eps_at(*step))
        output = model_fn(x_t, schedule.timesteps[t].astype(jnp.float32))
        found = objectives.vlb_term(schedule, x_0, x_t, t, output, prediction=prediction, variance=variance, clip=clip)
        said = output[..., : x_0.shape[-1]] if variance in LEARNED else output
        pred_eps = process.predict(schedule, x_t, t, said, prediction=prediction).eps
        x_0_mse = objectives.mean_over_pixels((x_0 - found.pred_x_0) ** 2)
        snr = jnp.exp(schedule.log_snr[step[0]]).astype(x_0.dtype)
        return None, (found.bits_per_dim, x_0_mse, snr * x_0_mse, objectives.mean_over_pixels(pred_eps**2))

    columns = jax.lax.scan(term, None, (jnp.arange(schedule.num_timesteps, dtype=jnp.int32), noise))[1]
    bits, x_0_mse, eps_mse, pred_eps_square = (column.T for column in columns)
    return VlbTerms(bits, objectives.prior_bits_per_dim(schedule, x_0), x_0_mse, eps_mse, pred_eps_square)
