"""What a run has at step k, and how it begins."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.config.run import NonFinite, OptimizerConfig
from ddpm_jax.train import ema

Params = Any


class Skipped(NamedTuple):
    """Steps that left the state as it was, because their loss or gradient was not finite; int32."""

    total: jax.Array
    in_a_row: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything step k + 1 needs besides (config, seed, k). No key: keys are computed from seed and step.

    params, opt_state and task_state are the task's, see `train.task`; the rest is the loop's.
    """

    step: jax.Array  # int32, updates done so far
    params: Params
    ema_params: Params
    opt_state: optax.OptState
    task_state: Any = ()  # what else the task carries from step to step
    ema_stack: Any = ()  # of ema.update_stack
    skipped: Any = ()  # Skipped, where train.non_finite is "skip": the step of such a state skips


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adam or AdamW on gradients clipped to a global norm, with a linear warm-up from 0 and an optional decay.

    Source: Ho et al. 2020 (arXiv:2006.11239), appendix B, and their code: warm-up over 5000 steps, clip 1. AdamW:
    Loshchilov and Hutter 2017 (arXiv:1711.05101), algorithm 2, with the learning rate for eta_t, as in optax.

    Raises:
      ValueError: a learning rate that is still None.
    """
    if config.learning_rate is None:
        raise ValueError("optimizer.learning_rate is None, which follows from the images: config.defaults.resolved")
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    rate = make_rate(config, config.learning_rate)
    if config.name == "adam":
        return optax.chain(clip, optax.adam(rate, config.beta1, config.beta2))
    decay = 1e-4 if config.weight_decay is None else config.weight_decay
    return optax.chain(clip, optax.adamw(rate, config.beta1, config.beta2, weight_decay=decay))


def make_rate(config: OptimizerConfig, peak: float) -> optax.ScalarOrSchedule:
    """The rate of step k: 0 to the peak in a line, then constant, or along a decay to end_rate at decay_steps."""
    warmup, last = config.warmup_steps, config.decay_steps
    if last is None:
        return peak if warmup == 0 else optax.linear_schedule(0.0, peak, warmup)
    if config.decay == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, last, config.end_rate)
    rise, fall = optax.linear_schedule(0.0, peak, warmup), optax.linear_schedule(peak, config.end_rate, last - warmup)
    return fall if warmup == 0 else optax.join_schedules([rise, fall], [warmup])


def start(
    params: Params,
    opt_state: optax.OptState,
    task_state: Any = (),
    *,
    averages: ema.Averages = ema.NONE,
    non_finite: NonFinite = "stop",
) -> TrainState:
    """The state before step 0 with these parameters; averages of parameters begin as copies."""
    # A copy: the state is donated, and a buffer can be donated once.
    ema_params = jax.tree.map(jnp.copy, params)
    ema_stack = ema.init_stack(params, averages)
    skipped = Skipped(jnp.int32(0), jnp.int32(0)) if non_finite == "skip" else ()
    return TrainState(jnp.int32(0), params, ema_params, opt_state, task_state, ema_stack, skipped)


def optimized(
    state: TrainState, grads: Params, optimizer: optax.GradientTransformation, task_state: Any = ()
) -> TrainState:
    """theta <- theta + update(gradient): the state after one update of an optimizer, with this task_state."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return dataclasses.replace(state, params=params, opt_state=opt_state, task_state=task_state)
