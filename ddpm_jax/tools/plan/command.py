"""The command `plan`: a configuration and slices in, tables and JSON out."""

import dataclasses
import datetime
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from ddpm_jax import data
from ddpm_jax.config.defaults import resolved
from ddpm_jax.config.networks import NetworkName
from ddpm_jax.config.run import Config, to_dict
from ddpm_jax.host.storage import write_atomically
from ddpm_jax.tools.plan.chips import CHIPS, Topology, parse
from ddpm_jax.tools.plan.planner import Plan, check_libtpu, plan_sampler, plan_train
from ddpm_jax.tools.plan.table import table


@dataclasses.dataclass(frozen=True)
class PlanArguments:
    config: Annotated[Config, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Config)
    model: NetworkName = "unet"
    """The network, whose settings the options --model.NAME are."""
    topology: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A slice to compile for, such as v5e:4x8 or v4:2x2x1; give it again for another column."""
    image_shape: tuple[int, int, int] | None = None
    """Height, width and channels; needed where the data's definition does not say them: no image is read."""
    json: Path | None = None
    """Where to write all of it as JSON."""


def run(arguments: PlanArguments, say: Callable[[str], None]) -> None:
    """Plan the train step on every slice and the sampler on one chip of each kind.

    Raises:
      ValueError: a topology, an image shape or a configuration that cannot be; no libtpu.
      ChildProcessError: the compiler failed.
    """
    if arguments.config.task != "diffusion":
        raise ValueError(f"plan is of --task diffusion, got --task {arguments.config.task}")
    if not arguments.topology:
        raise ValueError("plan needs a --topology, such as v5e:4x8")
    slices = [parse(name) for name in arguments.topology]
    check_libtpu()
    shape = image_shape(arguments.config, arguments.image_shape)
    config = resolved(arguments.config, shape)
    versions = {"date": datetime.date.today().isoformat()}
    versions |= {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu")}
    facts = {"versions": versions, "config": to_dict(config), "image_shape": shape}
    plans: list[Plan] = []

    def add(plan: Plan) -> None:
        plans.append(plan)
        if arguments.json is not None:
            write(arguments.json, facts, plans)  # after each, so that a later failure loses none

    for topology in slices:
        say(f"compiling the train step for {topology.name} (minutes for a large network)")
        add(plan_train(config, topology, shape))
    alone: dict[str, Topology] = {}  # the same chip, whatever slice it is in
    for topology in slices:
        alone.setdefault(topology.name.split(":")[0], topology)
    for topology in alone.values():
        say(f"compiling the sampler for one chip of {topology.name}")
        add(plan_sampler(config, topology, shape))
    trained, sampled = plans[: len(slices)], plans[len(slices) :]
    say(f"\ntrain step, per chip\n\n{table(trained)}")
    say(f"\n{config.sample.sampler}, {config.sample.num_steps} steps, on one chip\n\n{table(sampled)}\n")
    for plan in plans:
        if plan.problem is not None:
            say(f"{plan.topology} {plan.program}: {plan.problem}; try " + "; or ".join(plan.suggestions))
    say(", ".join(f"{name} {value}" for name, value in versions.items()))
    if arguments.json is not None:
        say(f"JSON: {arguments.json}")


def image_shape(config: Config, given: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """[H, W, C] as given, or as the data set is defined.

    Raises:
      ValueError: no image shape, one that is unknown, or one that contradicts data.image_size.
    """
    size = config.data.image_size
    if given is None:
        try:
            return data.image_shape(config.data.name, image_size=size)
        except ValueError as error:
            raise ValueError(f"{error}; plan reads no images: give --image-shape HEIGHT WIDTH CHANNELS") from None
    if min(given) < 1:
        raise ValueError(f"--image-shape must be at least 1 in each of height, width and channels, got {given}")
    if size is not None and given[:2] != (size, size):
        raise ValueError(f"--image-shape {given} contradicts data.image_size {size}")
    return given


def write(path: Path, facts: dict[str, Any], plans: list[Plan]) -> None:
    """Everything, with the peak rates that times were computed from; whole or not at all."""
    kinds = {plan.topology.split(":")[0] for plan in plans}
    facts = facts | {
        "chips": {kind: dataclasses.asdict(CHIPS[kind]) for kind in sorted(kinds)},
        "plans": [dataclasses.asdict(plan) | {"fits": plan.fits} for plan in plans],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(facts, indent=2) + "\n")
