"""One training step: the loss of a batch whose every example draws with its own key, pmapped over devices.

Every draw of step k for example b of the global batch comes from fold_in(fold_in(key, k), b), so the same batch gives
the same t, eps and dropout on any number of devices.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from ddpm_jax import images
from ddpm_jax.models import bind
from ddpm_jax.timesteps import TimestepSampler
from ddpm_jax.train import ema
from ddpm_jax.train.build import Losses, Objective
from ddpm_jax.train.state import TrainState

AXIS = "devices"
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def make_train_step(
    model: nn.Module,
    objective: Objective,
    timestep_sampler: TimestepSampler,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float,
    key: jax.Array,
    devices: list[jax.Device] | None = None,
) -> TrainStep:
    """train_step(state, batch) -> (state, {"loss", "grad_norm", ...}): one update on all local devices.

    The state is one replicated array per leaf, not a stack, and is donated: do not use it again. The loss and its parts
    are those of the global batch, grad_norm is before clipping; all are device arrays, and reading them waits for the
    step.

    Args:
      model: model(x_t, t, train=True, dropout_keys=[B] keys) in linen.
      objective: what is minimized.
      timestep_sampler: how t is drawn.
      optimizer: from optax.
      ema_decay: of `ema.update`.
      key: of the whole run.
      devices: those to use; all local ones by default.

    Returns:
      The step; batch is uint8 [devices, B / devices, H, W, C], see `shard`.
    """
    devices = devices or jax.local_devices()

    def train_step(state: TrainState, batch: jax.Array) -> tuple[TrainState, Metrics]:
        x_0 = images.to_float(batch)
        keys_of = lambda b: jax.random.split(jax.random.fold_in(jax.random.fold_in(key, state.step), b), 3)
        indices = jax.lax.axis_index(AXIS).astype(jnp.uint32) * len(batch) + jnp.arange(len(batch), dtype=jnp.uint32)
        _, keys_eps, dropout_keys = jax.vmap(keys_of, out_axes=1)(indices)
        eps = jax.vmap(lambda key_eps: jax.random.normal(key_eps, x_0.shape[1:]))(keys_eps)
        t, weight = timestep_sampler.draw(
            state.timestep_state, lambda b: keys_of(b)[0], indices, len(batch) * len(devices)
        )

        def mean_loss(params: Any) -> tuple[jax.Array, Losses]:
            losses = objective(bind(model, params, train=True, dropout_keys=dropout_keys), x_0, t, eps)
            return jnp.mean(weight * losses.total), losses

        (loss, losses), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        parts = {name: jnp.mean(weight * part) for name, part in losses.parts.items()}
        loss, parts, grads = jax.lax.pmean((loss, parts, grads), AXIS)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = ema.update(state.ema_params, params, state.step, ema_decay)
        # All losses on every device, in the order of the batch: so the sampler's state is the same everywhere.
        everywhere = jax.lax.all_gather((t, losses.total), AXIS, tiled=True)
        timestep_state = timestep_sampler.update(state.timestep_state, *everywhere)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **parts}
        return TrainState(state.step + 1, params, ema_params, opt_state, timestep_state), metrics

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
