"""Compiles one program of a run for one slice, in its own process: python -m ddpm_jax.tools.plan.worker REQUEST RESULT.

libtpu reads its settings when it is loaded, and ends the process where it cannot go on; JAX chooses its backend once.
REQUEST and RESULT are JSON files, see `planner`.
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from ddpm_jax import build, data
from ddpm_jax.config.run import Config, from_dict
from ddpm_jax.data.records import of_images
from ddpm_jax.samplers.catalogue import make_table
from ddpm_jax.tools.plan import chips, hlo
from ddpm_jax.train import loop
from ddpm_jax.train.tasks.diffusion import Diffusion


def main(request_file: str, result_file: str) -> None:
    """Answer one request; what is wrong with the request is an answer as well."""
    request = json.loads(Path(request_file).read_text())
    try:
        result = answer(request)
    except ValueError as error:
        result = {"error": str(error)}
    Path(result_file).write_text(json.dumps(result))


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Compile request["program"], "train" or "sampler", and measure it.

    Raises:
      ValueError: a slice that does not exist, or a configuration that does not fit it or the images.
    """
    config = from_dict(request["config"], Config)
    devices = tpu_devices(chips.parse(request["topology"]))
    run = loop.prepare(config, devices, without_images(tuple(request["image_shape"])))
    lowered, state_bytes, num_calls = PROGRAMS[request["program"]](run)
    result: dict[str, Any] = {"state_bytes": state_bytes, "num_calls": num_calls}
    start = time.time()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return result | {"exhausted": str(error)}
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    assert memory is not None and cost is not None and text is not None  # they may be with other compilers
    parts = ("argument", "output", "alias", "temp", "generated_code")
    return result | {
        "memory": {part: getattr(memory, f"{part}_size_in_bytes") for part in parts},
        "flops": cost["flops"],
        "hbm_bytes": cost["bytes accessed"],
        "collectives": [dataclasses.asdict(found) for found in hlo.collectives(text, len(devices))],
        "compile_seconds": time.time() - start,
    }


def tpu_devices(topology: chips.Topology) -> list[jax.Device]:
    """The chips of a slice, to compile for.

    Raises:
      ValueError: libtpu knows no such slice.
    """
    options: dict[str, Any] = {}
    if topology.num_chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if topology.name.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # both cores of a chip as one device, as on a TPU VM
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"libtpu does not accept topology {topology.name!r}: {error}") from None
    if len(found) != topology.num_chips:
        raise ValueError(f"topology {topology.name!r} has {topology.num_chips} chips, but libtpu {len(found)} devices")
    return list(found)


def without_images(image_shape: tuple[int, int, int]) -> data.Source:
    """What a data set of such images is to a run, as long as none is read."""

    def images(indices: np.ndarray) -> np.ndarray:
        raise AssertionError(f"a plan has no images, but {len(indices)} were read")

    return of_images("a plan's images", 1, image_shape, images)


# -------------------------------------------------------------------------------------------------------- programs

Lowered = tuple[jax.stages.Lowered, dict[str, int], int]


def lower_train(run: loop.Run) -> Lowered:
    """The train step, the bytes of its state on one chip, and how often the program that is compiled runs per step."""
    template = run.template()
    parts = {"parameters": template.params, "ema": template.ema_params, "optimizer": template.opt_state}
    state_bytes = {name: bytes_on_one(tree) for name, tree in parts.items()}
    lowered = run.train_step.lower(template, batch(run))  # pyright: ignore[reportFunctionMemberAccess]
    return lowered, state_bytes, 1


def batch(run: loop.Run) -> dict[str, jax.ShapeDtypeStruct]:
    """What run.batch gives, without images: the first axis is divided over all devices."""
    train, n = run.config.train, len(run.devices)
    leading = (train.batch_size,) if run.config.parallel.mesh else (n, train.batch_size // n)
    sharding = run.template().step.sharding
    assert isinstance(sharding, NamedSharding)  # of pmap too, see step.replicated
    divided = NamedSharding(sharding.mesh, PartitionSpec(sharding.mesh.axis_names))
    features = {name: run.source.spec[name] for name in run.task.reads}
    return {
        name: jax.ShapeDtypeStruct((*leading, *feature.shape), feature.dtype, sharding=divided)
        for name, feature in features.items()
    }


def lower_sampler(run: loop.Run) -> Lowered:
    """The sampler of the pictures made while training, on one chip, as `lower_train`.

    The compiler counts the body of its loop, one call of the network, once.
    """
    config, sharding, task = run.config, SingleDeviceSharding(run.devices[0]), run.task
    assert isinstance(task, Diffusion) and task.draw is not None  # what a configuration names
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    params = jax.tree.map(place, jax.eval_shape(run.init).ema_params)
    schedule = build.make_schedule(config.schedule)
    table = make_table(config.sample.sampler, schedule, config.sample.num_steps, variance=config.objective.variance)
    lowered = task.draw.lower(params, place(run.key_sample))  # pyright: ignore[reportFunctionMemberAccess]
    return lowered, {"parameters": bytes_on_one(params)}, table.num_calls


PROGRAMS: dict[str, Callable[[loop.Run], Lowered]] = {"train": lower_train, "sampler": lower_sampler}


def bytes_on_one(tree: Any) -> int:
    """Bytes of the part of a tree that one device holds."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
    main(*sys.argv[1:])
