"""The training step on a mesh of devices, for networks whose state is too large for one of them.

A mesh has two axes, data and fsdp ("fully sharded data parallel"). Both divide the batch. fsdp also divides parameters,
their average and the optimizer's state, each along one of its axes; the devices along data hold the same shard.
Parameters are gathered where the network is called, and a gradient is summed into shards: the loss, the draws and the
update are those of train.step.

Source: Rajbhandari et al. 2020 (arXiv:1910.02054), section 5, ZeRO stage 3, by XLA's partitioner.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ddpm_jax.config.run import MESH_AXES
from ddpm_jax.train import ema
from ddpm_jax.train.accumulation import accumulated
from ddpm_jax.train.guards import Metrics
from ddpm_jax.train.state import TrainState
from ddpm_jax.train.step import Batch, Read, TrainStep, check_batch_size, make_update, scanned, size_of
from ddpm_jax.train.task import Means, Task

BATCH = PartitionSpec(MESH_AXES)
WHOLE = PartitionSpec()


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device]) -> Mesh:
    """The devices as a grid [data, fsdp].

    Args:
      sizes: of each axis; 1 if not given.
      devices: as many as the grid has places.

    Raises:
      ValueError: more devices, or fewer.
    """
    shape = tuple(sizes.get(name, 1) for name in MESH_AXES)
    if math.prod(shape) != len(devices):
        grid = " x ".join(f"{name} {size}" for name, size in zip(MESH_AXES, shape, strict=True))
        raise ValueError(f"parallel.mesh is {grid} = {math.prod(shape)} devices, got {len(devices)} devices")
    return jax.make_mesh(shape, MESH_AXES, (AxisType.Auto,) * len(shape), devices=devices)


def shard(read: Read, batch_size: int, mesh: Mesh) -> Batch:
    """A batch of whole arrays, B divided over all devices of the mesh; a process reads the rows of its own devices.

    Args:
      read: read(rows) -> those rows of the batch.
      batch_size: B.
      mesh: of the devices of all processes.

    Raises:
      ValueError: B not divisible by the number of devices.
    """
    check_batch_size(batch_size, mesh.size)
    sharding = NamedSharding(mesh, BATCH)
    places = sharding.addressable_devices_indices_map((batch_size,)).values()
    rows = [index[0] for index in places if index is not None]
    starts, parts = [part.start for part in rows], [read(part) for part in rows]

    def whole(*leaves: Any) -> jax.Array:
        """Of the rows of each device. One call for all: placing them one by one takes four times as long."""
        of_place = lambda index: leaves[starts.index(index[0].start)]  # pyright: ignore[reportOptionalSubscript]
        return jax.make_array_from_callback((batch_size, *leaves[0].shape[1:]), sharding, of_place)

    return jax.tree.map(whole, *parts)


def sharded(state: TrainState, mesh: Mesh) -> TrainState:
    """The shapes and dtypes of a state, with the shardings train_step returns."""
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.tree.map(place, state, _shardings(state, mesh))


def _shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """A sharding for each leaf: what grows with the network is divided, the rest is whole on every device."""
    fsdp = mesh.shape["fsdp"]
    divide = lambda tree: _divided(tree, mesh)
    whole = lambda tree: jax.tree.map(lambda leaf: NamedSharding(mesh, WHOLE), tree)
    return TrainState(
        step=whole(state.step),
        params=divide(state.params),
        ema_params=divide(state.ema_params),
        opt_state=divide(state.opt_state),
        task_state=whole(state.task_state),
        ema_stack=jax.tree.map(lambda leaf: NamedSharding(mesh, _row_spec(leaf.shape, fsdp)), state.ema_stack),
        skipped=whole(state.skipped),
    )


def _divided(tree: Any, mesh: Mesh) -> Any:
    """Of parameters, or of a gradient: a task may have more of these than there are parameters."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, spec(leaf.shape, mesh.shape["fsdp"])), tree)


def _row_spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """Of stacked arrays [R, ...]: that of each of them."""
    row = spec(shape[1:], fsdp)
    return row if row == WHOLE else PartitionSpec(None, *row)


def spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """An array's largest axis that fsdp divides, the last of equal ones, is sharded; none where it divides none."""
    divisible = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if fsdp == 1 or not divisible:
        return WHOLE
    largest = max(divisible, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*(None,) * largest, "fsdp")


def make_train_step(
    task: Task,
    *,
    ema_decay: float,
    mesh: Mesh,
    accumulate: int = 1,
    averages: ema.Averages = ema.NONE,
) -> TrainStep:
    """train_step(state, batch) -> (state, metrics), as step.make_train_step, on a mesh.

    With accumulate, parameters are gathered and gradients summed into shards once for every micro-batch: no device
    ever holds more than a shard of the sum.

    Args:
      mesh: see `make_mesh`; the other arguments are those of step.make_train_step.

    Returns:
      The step; the state is placed as `sharded` says and donated, the batch's arrays are [B, ...], see `shard`, or it
      is `step.Several`.

    Raises:
      ValueError: B not divisible by devices and micro-batches. Raised while tracing.
    """
    update = make_update(task, ema_decay, averages)
    place = lambda tree, spec: jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, spec))

    def sharded_gradient(state: TrainState, batch: Batch, indices: jax.Array, batch_size: int) -> tuple[Means, Any]:
        # Everything follows from these: whole parameters, so that it is the examples that are divided.
        gathered = dataclasses.replace(state, params=place(state.params, WHOLE))
        means, said = task.gradient(gathered, place(batch, BATCH), place(indices, BATCH), batch_size)
        grads = jax.lax.with_sharding_constraint(means.grads, _divided(means.grads, mesh))
        return means._replace(grads=grads), said

    gradient = accumulated(sharded_gradient, accumulate, unroll=mesh.devices.flat[0].platform == "cpu")

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        size = size_of(batch)
        check_batch_size(size, mesh.size, accumulate)
        means, said = gradient(state, batch, jnp.arange(size, dtype=jnp.uint32), size)
        after, metrics = update(state, means, place(said, WHOLE))
        return jax.lax.with_sharding_constraint(after, _shardings(after, mesh)), place(metrics, WHOLE)

    return jax.jit(scanned(train_step), donate_argnums=0)


def on_one_device(tree: Any) -> Any:
    """A whole copy of arrays that lie on a mesh, on the first device of this process; every process must call it."""
    whole = lambda leaf: NamedSharding(leaf.sharding.mesh, WHOLE)
    gathered = jax.jit(lambda tree: tree, out_shardings=jax.tree.map(whole, tree))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), gathered)
