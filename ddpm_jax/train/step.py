"""One training step: the loss of a batch whose every example draws with its own key, pmapped over devices.

Every draw of step k for example b of the global batch comes from fold_in(fold_in(key, k), b), so the same batch gives
the same t, eps and dropout on any number of devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from ddpm_jax import images, objectives, timesteps
from ddpm_jax.models import bind
from ddpm_jax.schedules import Schedule
from ddpm_jax.train import ema
from ddpm_jax.train.state import TrainState

AXIS = "devices"
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


class Draws(NamedTuple):
    """What training draws for each example: t [B] int32, eps like x_0, a dropout key [B]."""

    t: jax.Array
    eps: jax.Array
    dropout_keys: jax.Array


def draw(keys: jax.Array, num_timesteps: int, image_shape: tuple[int, ...]) -> Draws:
    """t, eps and dropout key of every example from its own key: keys [B] -> Draws."""

    def one(key: jax.Array) -> Draws:
        key_t, key_eps, key_dropout = jax.random.split(key, 3)
        t = timesteps.uniform(key_t, num_timesteps)
        return Draws(t, jax.random.normal(key_eps, image_shape), key_dropout)

    return jax.vmap(one)(keys)


def example_keys(key: jax.Array, step: jax.Array, first: jax.Array | int, count: int) -> jax.Array:
    """fold_in(fold_in(key, step), b) for the global indices b = first .. first + count - 1; keys [count]."""
    indices = jnp.asarray(first, jnp.uint32) + jnp.arange(count, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(key, step), indices)


def make_train_step(
    model: nn.Module,
    schedule: Schedule,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float,
    key: jax.Array,
    devices: list[jax.Device] | None = None,
) -> TrainStep:
    """train_step(state, batch) -> (state, {"loss", "grad_norm"}): one update on all local devices.

    The state is one replicated array per leaf, not a stack, and is donated: do not use it again. The loss is that of
    the global batch, grad_norm is before clipping; both are device arrays, and reading them waits for the step.

    Args:
      model: model(x_t, t, train=True, dropout_keys=[B] keys) in linen.
      schedule: of length T.
      optimizer: from optax.
      ema_decay: of `ema.update`.
      key: of the whole run.
      devices: those to use; all local ones by default.

    Returns:
      The step; batch is uint8 [devices, B / devices, H, W, C], see `shard`.
    """

    def train_step(state: TrainState, batch: jax.Array) -> tuple[TrainState, Metrics]:
        x_0 = images.to_float(batch)
        keys = example_keys(key, state.step, jax.lax.axis_index(AXIS) * len(batch), len(batch))

        t, eps, dropout_keys = draw(keys, schedule.num_timesteps, x_0.shape[1:])

        def mean_loss(params: Any) -> jax.Array:
            model_fn = bind(model, params, train=True, dropout_keys=dropout_keys)
            return jnp.mean(objectives.simple(model_fn, schedule, x_0, t, eps))

        loss, grads = jax.lax.pmean(jax.value_and_grad(mean_loss)(state.params), AXIS)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = ema.update(state.ema_params, params, state.step, ema_decay)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, ema_params, opt_state), metrics

    return jax.pmap(train_step, AXIS, in_axes=(None, 0), out_axes=None, devices=devices, donate_argnums=0)


def shard(batch: Any, num_devices: int) -> Any:
    """[B, ...] -> [num_devices, B / num_devices, ...].

    Raises:
      ValueError: B not divisible by the number of devices.
    """
    if len(batch) % num_devices:
        raise ValueError(f"batch size {len(batch)} is not divisible by the number of devices, {num_devices}")
    return batch.reshape(num_devices, len(batch) // num_devices, *batch.shape[1:])


def replicated(tree: Any, devices: list[jax.Device]) -> Any:
    """The shapes and dtypes of a tree, with the sharding train_step returns: a whole copy on every device."""
    sharding = jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(devices), (AXIS,)), jax.sharding.PartitionSpec())
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)
