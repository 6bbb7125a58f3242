"""One training step: the loss of a batch whose every example draws with its own key, pmapped over devices.

Its two halves, `make_gradient` and `make_update`, are also what train.mesh compiles for a mesh of devices.

Every draw of step k for example b of the global batch comes from fold_in(fold_in(key, k), b), so the same batch gives
the same t, eps and dropout on any number of devices.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax import images
from ddpm_jax.build import Losses, Objective
from ddpm_jax.models import bind
from ddpm_jax.timesteps import TimestepSampler
from ddpm_jax.train import ema, guards
from ddpm_jax.train.accumulation import accumulated
from ddpm_jax.train.guards import Metrics
from ddpm_jax.train.state import TrainState

AXIS = "devices"
TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
Read = Callable[[slice], np.ndarray]


class Means(NamedTuple):
    """Over the examples of a batch, or of a part of one."""

    loss: jax.Array
    parts: dict[str, jax.Array]
    grads: Any


class Said(NamedTuple):
    """Of each example, [B]: what a TimestepSampler learns from."""

    t: jax.Array
    losses: jax.Array


# gradient(state, uint8 [b, H, W, C], their b indices in the global batch, the global batch's size)
Gradient = Callable[[TrainState, jax.Array, jax.Array, int], tuple[Means, Said]]
Update = Callable[[TrainState, Means, Said], tuple[TrainState, Metrics]]


def make_train_step(
    model: nn.Module,
    objective: Objective,
    timestep_sampler: TimestepSampler,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float,
    key: jax.Array,
    devices: Sequence[jax.Device] | None = None,
    accumulate: int = 1,
    averages: ema.Averages = ema.NONE,
) -> TrainStep:
    """train_step(state, batch) -> (state, {"loss", "grad_norm", ...}): one update on all devices.

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
      devices: those to use, of all processes; by default those of this one.
      accumulate: micro-batches that each device computes one after the other, see `accumulation.accumulated`.
      averages: those in the state's stack, see `ema.update_stack`.

    Returns:
      The step; batch is uint8 [this process's devices, B / all devices, H, W, C], see `shard`, or a tuple of several,
      see `scanned`.

    Raises:
      ValueError: examples of a device that do not divide into micro-batches. Raised while tracing.
    """
    devices = devices or jax.local_devices()
    gradient = make_gradient(model, objective, timestep_sampler, key)
    gradient = accumulated(gradient, accumulate, unroll=devices[0].platform == "cpu")
    update = make_update(timestep_sampler, optimizer, ema_decay, averages)

    def train_step(state: TrainState, batch: jax.Array) -> tuple[TrainState, Metrics]:
        batch_size = len(batch) * len(devices)
        check_batch_size(batch_size, len(devices), accumulate)
        indices = jax.lax.axis_index(AXIS).astype(jnp.uint32) * len(batch) + jnp.arange(len(batch), dtype=jnp.uint32)
        means, said = gradient(state, batch, indices, batch_size)
        # What all examples said on every device, in the order of the batch: so the sampler's state is everywhere the
        # same.
        return update(state, jax.lax.pmean(means, AXIS), jax.lax.all_gather(said, AXIS, tiled=True))

    return jax.pmap(scanned(train_step), AXIS, in_axes=(None, 0), out_axes=None, devices=devices, donate_argnums=0)


def scanned(train_step: TrainStep) -> TrainStep:
    """train_step(state, (batch, ...)) -> (state, metrics [n]): n steps in one program; one batch goes as it came.

    Not for CPUs, where the weight gradient of a convolution takes 100 times as long inside a loop.
    """

    def steps(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        if not isinstance(batch, tuple):
            return train_step(state, batch)
        return jax.lax.scan(train_step, state, jnp.stack(batch))

    return steps


def make_gradient(
    model: nn.Module, objective: Objective, timestep_sampler: TimestepSampler, key: jax.Array
) -> Gradient:
    """The loss of some examples of a batch and its gradient; arguments as in `make_train_step`."""

    def gradient(state: TrainState, batch: jax.Array, indices: jax.Array, batch_size: int) -> tuple[Means, Said]:
        x_0 = images.to_float(batch)
        keys_of = lambda b: jax.random.split(jax.random.fold_in(jax.random.fold_in(key, state.step), b), 3)
        _, keys_eps, dropout_keys = jax.vmap(keys_of, out_axes=1)(indices)
        eps = jax.vmap(lambda key_eps: jax.random.normal(key_eps, x_0.shape[1:]))(keys_eps)
        t, weight = timestep_sampler.draw(state.timestep_state, lambda b: keys_of(b)[0], indices, batch_size)

        def mean_loss(params: Any) -> tuple[jax.Array, Losses]:
            losses = objective(bind(model, params, train=True, dropout_keys=dropout_keys), x_0, t, eps)
            return jnp.mean(weight * losses.total), losses

        (loss, losses), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        parts = {name: jnp.mean(weight * part) for name, part in losses.parts.items()}
        return Means(loss, parts, grads), Said(t, losses.total)

    return gradient


def make_update(
    timestep_sampler: TimestepSampler,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    averages: ema.Averages = ema.NONE,
) -> Update:
    """The state after a whole batch, and what its log shows; arguments as in `make_train_step`.

    A state that counts skipped steps is left as it was where one of these numbers is not finite, see `guards.skip`.
    """

    def update(state: TrainState, means: Means, said: Said) -> tuple[TrainState, Metrics]:
        def after(state: TrainState) -> TrainState:
            updates, opt_state = optimizer.update(means.grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            return dataclasses.replace(
                state,
                step=state.step + 1,
                params=params,
                ema_params=ema.update(state.ema_params, params, state.step, ema_decay),
                opt_state=opt_state,
                timestep_state=timestep_sampler.update(state.timestep_state, *said),
                ema_stack=ema.update_stack(state.ema_stack, params, state.step, averages),
            )

        metrics = {"loss": means.loss, "grad_norm": optax.tree.norm(means.grads), **means.parts}
        return guards.skip(after, state, metrics) if state.skipped else (after(state), metrics)

    return update


def check_batch_size(batch_size: int, num_devices: int, accumulate: int = 1) -> None:
    """Whether a batch can be cut into equal parts.

    Raises:
      ValueError: it is not divisible by the number of devices, or a device's share by the number of micro-batches.
    """
    if batch_size % num_devices:
        raise ValueError(f"batch size {batch_size} is not divisible by the number of devices, {num_devices}")
    if batch_size // num_devices % accumulate:
        raise ValueError(
            f"train.accumulate {accumulate} does not divide the {batch_size // num_devices} examples of each device "
            f"(batch size {batch_size} on {num_devices} devices)"
        )


def shard(read: Read, shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """This process's part of a batch, [its devices, B / all devices, ...].

    Args:
      read: read(rows) -> those rows of the batch.
      shape: [B, ...] of the whole batch.
      devices: of all processes; those of a process side by side.

    Raises:
      ValueError: B not divisible by the number of devices.
    """
    check_batch_size(shape[0], len(devices))
    each = shape[0] // len(devices)
    mine = [i for i, device in enumerate(devices) if device.process_index == jax.process_index()]
    return read(slice(mine[0] * each, (mine[-1] + 1) * each)).reshape(len(mine), each, *shape[1:])


def replicated(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """The shapes and dtypes of a tree, with a whole copy on every device of every process."""
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def of_all_processes(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """The same arrays, placed as `replicated` says: pmap returns to each process copies on its own devices only."""
    if jax.process_count() == 1:
        return tree
    place = lambda leaf, like: jax.make_array_from_single_device_arrays(
        leaf.shape, like.sharding, [shard.data for shard in leaf.addressable_shards]
    )
    return jax.tree.map(place, tree, replicated(tree, devices))
