"""Diffusion of binary data: every bit decays towards an independent coin.

  q(x_t | x_{t-1})       = B(x_t; x_{t-1} (1 - beta_t) + rate beta_t)    Sohl-Dickstein et al. 2015 (arXiv:1503.03585),
  q(x_t | x_0)           = B(x_t; x_0 ac_t + rate (1 - ac_t))            table App.1
  q(x_{t-1} | x_t, x_0)  : logit = logit q(x_t | x_{t-1}) with x_t for x_{t-1}, + logit q(x_{t-1} | x_0) - logit(rate)
  p(x_{t-1} | x_t)       = sum over k of q(x_{t-1} | x_t, x_0 = k) p(x_0 = k | x_t), bit by bit

B(x; r) is a coin with P(x = 1) = r. A bit is kept with probability 1 - beta_t, otherwise drawn anew from B(rate). So
the signal left after t steps is ac_t = schedule.alphas_cumprod itself, where Gaussian diffusion has its square root.
The kernel is reversible with respect to B(rate), q(x' | x) / rate(x') = q(x | x') / rate(x): what x_t says of x_{t-1}
is what the kernel says of a bit that leaves x_t, and in Bayes' rule log-odds add up to the third line.

The paper's table has rate = 1/2; its experiment has the mean activity of the data (appendix D.1.2): here an argument.
Bits are floats that are 0 or 1. Distributions of bits are log-odds, logit = log P(1) - log P(0), because probabilities
near 1 round to 1. t is 0-based, "x_{t-1}" at t = 0 is x_0 itself. `schedules.jsd` is the schedule of section 2.4.1.
Not checked: that bits are 0 or 1; that t lies in [0, T).
"""

import math

import jax
import jax.numpy as jnp

from ddpm_jax.keys import example_keys
from ddpm_jax.process import ModelFn, batched
from ddpm_jax.schedules import Schedule


def _kernel(x: jax.Array, decay: jax.Array, rate: float) -> jax.Array:
    """Log-odds of B(x (1 - decay) + rate decay); relative precision of both probabilities, however small."""
    if not 0 < rate < 1:
        raise ValueError(f"rate must lie in (0, 1), got {rate}")
    one, zero = x + decay * (rate - x), (1 - x) + decay * (x - rate)
    return jnp.log(one) - jnp.log(zero)


def _decay_before(schedule: Schedule, t: jax.Array) -> jax.Array:
    """1 - ac_{t-1}, without cancellation; 0 at t = 0."""
    return jnp.where(t == 0, 0, schedule.one_minus_alphas_cumprod[t - 1])


@batched("x_prev")
def q_step(schedule: Schedule, x_prev: jax.Array, t: jax.Array, *, rate: float = 0.5) -> jax.Array:
    """Log-odds of q(x_t | x_{t-1}) = B(x_{t-1} (1 - beta_t) + rate beta_t).

    Source: Sohl-Dickstein et al. 2015 (arXiv:1503.03585), table App.1.

    Args:
      schedule: Schedule of length T.
      x_prev: [B, ...] bits.
      t: [B] int in [0, T).
      rate: P(1) of the coin that bits decay to, in (0, 1).

    Raises:
      ValueError: x_prev is not floating point, t is not [B] integers, rate outside (0, 1).
    """
    return _kernel(x_prev, schedule.betas[t].astype(x_prev.dtype), rate)


@batched("x_0")
def q_marginal(schedule: Schedule, x_0: jax.Array, t: jax.Array, *, rate: float = 0.5) -> jax.Array:
    """Log-odds of q(x_t | x_0) = B(x_0 ac_t + rate (1 - ac_t)).

    Source: Sohl-Dickstein et al. 2015 (arXiv:1503.03585), table App.1, t + 1 kernels composed.

    Args:
      x_0: [B, ...] bits; the rest as q_step.
    """
    return _kernel(x_0, schedule.one_minus_alphas_cumprod[t].astype(x_0.dtype), rate)


@batched("x_0", "u")
def q_sample(schedule: Schedule, x_0: jax.Array, t: jax.Array, u: jax.Array, *, rate: float = 0.5) -> jax.Array:
    """x_t = [u < P(x_t = 1 | x_0)], a sample of q(x_t | x_0) if u ~ Uniform[0, 1).

    Args:
      u: like x_0; the rest as q_marginal.

    Returns:
      x_t, bits like x_0.
    """
    decay = schedule.one_minus_alphas_cumprod[t].astype(x_0.dtype)
    return coin(_kernel(x_0, decay, rate), u)


def _q_posterior(schedule: Schedule, x_0: jax.Array, x_t: jax.Array, t: jax.Array, rate: float) -> jax.Array:
    from_x_t = _kernel(x_t, schedule.betas[t].astype(x_t.dtype), rate)
    from_x_0 = _kernel(x_0, _decay_before(schedule, t).astype(x_t.dtype), rate)
    return from_x_t + from_x_0 - math.log(rate / (1 - rate))


@batched("x_0", "x_t")
def q_posterior(schedule: Schedule, x_0: jax.Array, x_t: jax.Array, t: jax.Array, *, rate: float = 0.5) -> jax.Array:
    """Log-odds of q(x_{t-1} | x_t, x_0) = q(x_t | x_{t-1}) q(x_{t-1} | x_0) / q(x_t | x_0).

    Args:
      x_0: [B, ...] bits.
      x_t: like x_0; the rest as q_step.

    Returns:
      Like x_0. At t = 0 infinite: x_{t-1} is x_0 for certain.

    Example:
      >>> from ddpm_jax import schedules
      >>> logits = q_posterior(schedules.const(2, beta_end=0.5), jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.array([1]))
      >>> jnp.exp(logits).round(3).tolist()  # x_t speaks for a 1 by 3 to 1, and so does x_0
      [[9.0]]
    """
    return _q_posterior(schedule, x_0, x_t, t, rate)


@batched("x_t")
def p_step(schedule: Schedule, x_t: jax.Array, t: jax.Array, output: jax.Array, *, rate: float = 0.5) -> jax.Array:
    """Log-odds of p(x_{t-1} | x_t) = sum over k of q(x_{t-1} | x_t, x_0 = k) p(x_0 = k | x_t), bit by bit.

    With the true P(x_0 = 1 | x_t) of each bit this is the true P(x_{t-1} = 1 | x_t) of each bit, the best that any
    product of coins can do. The paper's network returns these odds at once, which asks it to copy x_t: at T = 2000 most
    of it is the same for every data set.

    Source: Austin et al. 2021 (arXiv:2107.03006), eq. 4, for two states.

    Args:
      x_t: [B, ...] bits.
      output: like x_t, log-odds of x_0 = 1 given x_t: what the network returned.
      The rest as q_step.

    Returns:
      Like x_t. At t = 0 it is output.
    """
    if_one, if_zero = (_q_posterior(schedule, jnp.full_like(x_t, k), x_t, t, rate) for k in (1, 0))
    log_sum = lambda sign: jnp.logaddexp(
        jax.nn.log_sigmoid(output) + jax.nn.log_sigmoid(sign * if_one),
        jax.nn.log_sigmoid(-output) + jax.nn.log_sigmoid(sign * if_zero),
    )
    return log_sum(1) - log_sum(-1)


def coin(logits: jax.Array, u: jax.Array) -> jax.Array:
    """[u < sigmoid(logits)]: bits in the dtype of u, samples of the coins if u ~ Uniform[0, 1)."""
    return (u < jax.nn.sigmoid(logits)).astype(u.dtype)


def kl_nats(logits_1: jax.Array, logits_2: jax.Array) -> jax.Array:
    """KL(B(sigmoid(logits_1)) || B(sigmoid(logits_2))), elementwise, nats.

    logits_1 may be infinite: minus the log-probability of that bit.
    """
    one, zero = jax.nn.sigmoid(logits_1), jax.nn.sigmoid(-logits_1)
    entropy = -jax.scipy.special.xlogy(one, one) - jax.scipy.special.xlogy(zero, zero)
    return -one * jax.nn.log_sigmoid(logits_2) - zero * jax.nn.log_sigmoid(-logits_2) - entropy


def _sum_bits(nats: jax.Array) -> jax.Array:
    return nats.reshape(nats.shape[0], -1).sum(1) / math.log(2)


def vlb_term(
    schedule: Schedule, x_0: jax.Array, x_t: jax.Array, t: jax.Array, output: jax.Array, *, rate: float = 0.5
) -> jax.Array:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)); at t = 0 that is -log p(x_0 | x_1). Bits per example, [B].

    -log2 p(x_0) <= prior_bits + sum over t of the mean of this over q(x_t | x_0).

    Source: Sohl-Dickstein et al. 2015 (arXiv:1503.03585), eq. 14, but for the first step: the paper fixes its reverse
    to the forward kernel (eq. 44), here the network has it too, as in Ho et al. 2020 (arXiv:2006.11239), eq. 5.

    Args:
      x_0: [B, ...] bits.
      x_t: like x_0.
      t: [B] int in [0, T).
      output: like x_0, as p_step.

    Raises:
      ValueError: as q_step.
    """
    p = p_step(schedule, x_t, t, output, rate=rate)
    return _sum_bits(kl_nats(q_posterior(schedule, x_0, x_t, t, rate=rate), p))


def vlb(
    model_fn: ModelFn, schedule: Schedule, x_0: jax.Array, t: jax.Array, u: jax.Array, *, rate: float = 0.5
) -> jax.Array:
    """vlb_term at x_t = q_sample(x_0, t, u): a loss. Bits per example, [B].

    Args:
      model_fn: model_fn(x_t [B, ...], t [B] float32) -> log-odds of x_0, like x_t; told schedule.timesteps[t].
      The rest as q_sample.
    """
    x_t = q_sample(schedule, x_0, t, u, rate=rate)
    output = model_fn(x_t, schedule.timesteps[t].astype(jnp.float32))
    return vlb_term(schedule, x_0, x_t, t, output, rate=rate)


def prior_bits(schedule: Schedule, x_0: jax.Array, *, rate: float = 0.5) -> jax.Array:
    """KL(q(x_T | x_0) || B(rate)), bits per example, [B]; 0 if the last beta is 1."""
    last = jnp.full(x_0.shape[:1], schedule.num_timesteps - 1)
    logits = q_marginal(schedule, x_0, last, rate=rate)
    return _sum_bits(kl_nats(logits, jnp.full_like(logits, math.log(rate / (1 - rate)))))


def trajectory(
    model_fn: ModelFn, schedule: Schedule, key: jax.Array, shape: tuple[int, ...], *, rate: float = 0.5
) -> jax.Array:
    """x_T, .., x_1, x_0, float32 [T + 1, B, ...]: a sample of p(x_{0..T}). One scan; jit it.

    Sample i has the key fold_in(key, i); its coins of step t use fold_in(that, t), those of x_T use fold_in(that, T).

    Args:
      model_fn: as vlb.
      shape: [B, ...] of x_0.
    """
    keys = example_keys(key, 0, shape[0])
    uniform = lambda key, t: jax.random.uniform(jax.random.fold_in(key, t), shape[1:], jnp.float32)
    uniforms = lambda t: jax.vmap(uniform, in_axes=(0, None))(keys, t)

    def step(x_t: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        output = model_fn(x_t, jnp.full(shape[:1], schedule.timesteps[t], jnp.float32))
        x_prev = coin(p_step(schedule, x_t, jnp.full(shape[:1], t), output, rate=rate), uniforms(t))
        return x_prev, x_prev

    x_T = (uniforms(schedule.num_timesteps) < rate).astype(jnp.float32)
    _, rest = jax.lax.scan(step, x_T, jnp.arange(schedule.num_timesteps - 1, -1, -1))
    return jnp.concatenate([x_T[None], rest])
