"""One training step of a task: the mean loss of a batch, pmapped over devices.

What the devices add, `accumulated` gradients and `make_update`, is also what train.mesh compiles for a mesh of devices.

A batch is a mapping of arrays [B, ...], as a task reads it; each device takes a share of the examples of every one.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax.train import ema, guards
from ddpm_jax.train.accumulation import accumulated
from ddpm_jax.train.guards import Metrics
from ddpm_jax.train.state import TrainState
from ddpm_jax.train.task import Means, Task

AXIS = "devices"
Batch = Mapping[str, Any]
Read = Callable[[slice], Mapping[str, np.ndarray]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Several:
    """The batches of consecutive steps, for one call of the step; at least two."""

    batches: tuple[Batch, ...]


TrainStep = Callable[[TrainState, Batch | Several], tuple[TrainState, Metrics]]


def make_train_step(
    task: Task,
    *,
    ema_decay: float,
    devices: Sequence[jax.Device] | None = None,
    accumulate: int = 1,
    averages: ema.Averages = ema.NONE,
) -> TrainStep:
    """train_step(state, batch) -> (state, {"loss", "grad_norm", ...}): one update on all devices.

    The state is one replicated array per leaf, not a stack, and is donated: do not use it again. The loss and its parts
    are those of the global batch, grad_norm is before clipping; all are device arrays, and reading them waits for the
    step.

    Args:
      task: whose gradient and update it takes.
      ema_decay: of `ema.update`.
      devices: those to use, of all processes; by default those of this one.
      accumulate: micro-batches that each device computes one after the other, see `accumulation.accumulated`.
      averages: those in the state's stack, see `ema.update_stack`.

    Returns:
      The step; the batch's arrays are [this process's devices, B / all devices, ...], see `shard`, or it is `Several`.

    Raises:
      ValueError: examples of a device that do not divide into micro-batches. Raised while tracing.
    """
    devices = devices or jax.local_devices()
    gradient = accumulated(task.gradient, accumulate, unroll=devices[0].platform == "cpu")
    update = make_update(task, ema_decay, averages)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        size = size_of(batch)
        batch_size = size * len(devices)
        check_batch_size(batch_size, len(devices), accumulate)
        indices = jax.lax.axis_index(AXIS).astype(jnp.uint32) * size + jnp.arange(size, dtype=jnp.uint32)
        means, said = gradient(state, batch, indices, batch_size)
        # What all examples said on every device, in the order of the batch: so the task's state is everywhere the
        # same.
        return update(state, jax.lax.pmean(means, AXIS), jax.lax.all_gather(said, AXIS, tiled=True))

    return jax.pmap(scanned(train_step), AXIS, in_axes=(None, 0), out_axes=None, devices=devices, donate_argnums=0)


def scanned(train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]) -> TrainStep:
    """train_step(state, Several) -> (state, metrics [n]): n steps in one program; one batch goes as it came.

    Not for CPUs, where the weight gradient of a convolution takes 100 times as long inside a loop.
    """

    def steps(state: TrainState, batch: Batch | Several) -> tuple[TrainState, Metrics]:
        if not isinstance(batch, Several):
            return train_step(state, batch)
        return jax.lax.scan(train_step, state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *batch.batches))

    return steps


def size_of(batch: Batch) -> int:
    """b of arrays [b, ...]."""
    return len(jax.tree.leaves(batch)[0])


def make_update(
    task: Task, ema_decay: float, averages: ema.Averages = ema.NONE
) -> Callable[[TrainState, Means, Any], tuple[TrainState, Metrics]]:
    """The state after a whole batch, and what its log shows; arguments as in `make_train_step`.

    A state that counts skipped steps is left as it was where one of these numbers is not finite, see `guards.skip`.
    """

    def update(state: TrainState, means: Means, said: Any) -> tuple[TrainState, Metrics]:
        def after(state: TrainState) -> TrainState:
            updated = task.update(state, means, said)
            return dataclasses.replace(
                updated,
                step=state.step + 1,
                ema_params=ema.update(state.ema_params, updated.params, state.step, ema_decay),
                ema_stack=ema.update_stack(state.ema_stack, updated.params, state.step, averages),
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


def shard(read: Read, batch_size: int, devices: Sequence[jax.Device]) -> Batch:
    """This process's part of a batch, arrays [its devices, B / all devices, ...].

    Args:
      read: read(rows) -> those rows of the batch.
      batch_size: B.
      devices: of all processes; those of a process side by side.

    Raises:
      ValueError: B not divisible by the number of devices.
    """
    check_batch_size(batch_size, len(devices))
    each = batch_size // len(devices)
    mine = [i for i, device in enumerate(devices) if device.process_index == jax.process_index()]
    rows = read(slice(mine[0] * each, (mine[-1] + 1) * each))
    return jax.tree.map(lambda leaf: leaf.reshape(len(mine), each, *leaf.shape[1:]), rows)


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
