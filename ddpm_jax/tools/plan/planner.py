"""Plans: what the compiled programs of a run need of each chip, and the least time they take."""

import dataclasses
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_jax.config.run import Config, ParallelConfig, to_dict
from ddpm_jax.tools.plan import chips
from ddpm_jax.tools.plan.hlo import Collective
from ddpm_jax.tools.plan.roofline import Roofline, roofline
from ddpm_jax.tools.plan.suggestions import multiples, to_fit

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # What the metadata server of a TPU VM would say; libtpu asks for them, whatever slice it then compiles for.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing runs on a TPU here, so plans may be made side by side
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "JAX_TRACEBACK_FILTERING": "off",  # the last line of a traceback is then the error
}
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Exchange:
    """All collectives of one kind in one step."""

    operation: str
    group_size: int
    count: int
    num_bytes: int


@dataclass(frozen=True)
class Cost:
    """What the compiler and the roofline say of one step: of one training step, or of all calls of a sampler.

    Attributes:
      argument_bytes: the state, the batch, and what the chip's layout adds to them.
      activation_bytes: the compiler's temporaries: activations, gradients, work space.
      code_bytes: the program.
      used_bytes: all of these, and results that do not take the place of an argument.
      flops, hbm_bytes: of one chip.
      exchanges: between the chips.
      roofline: least seconds of each resource.
      seconds: the least that a step takes.
      images_per_second: the most that all chips do together.
      compile_seconds: what finding this took.
    """

    argument_bytes: int
    activation_bytes: int
    code_bytes: int
    used_bytes: int
    flops: float
    hbm_bytes: float
    exchanges: tuple[Exchange, ...]
    roofline: Roofline
    seconds: float
    images_per_second: float
    compile_seconds: float


@dataclass(frozen=True)
class Plan:
    """One program on one slice.

    Attributes:
      program: "train" or "sampler".
      topology: of the slice; a sampler uses one chip of it.
      num_chips: that the program runs on.
      num_images: of one step, all chips together.
      num_calls: network calls of the sampler; 1 in training.
      problem: why it cannot run; None if it can.
      suggestions: what to change then.
      state_bytes: on one chip, by name: parameters, ema, optimizer.
      cost: None where nothing could be compiled.
    """

    program: str
    topology: str
    num_chips: int
    num_images: int
    num_calls: int
    problem: str | None
    suggestions: tuple[str, ...]
    state_bytes: dict[str, int]
    cost: Cost | None

    @property
    def fits(self) -> bool:
        return self.problem is None


def plan_train(config: Config, topology: chips.Topology, image_shape: tuple[int, int, int]) -> Plan:
    """The train step of a configuration on all chips of a slice.

    Raises:
      ValueError: gradients are accumulated; no libtpu; a slice that does not exist; a configuration that does not fit
        the images.
      ChildProcessError: the compiler failed.
    """
    n, batch_size, parts = topology.num_chips, config.train.batch_size, config.train.accumulate
    if parts > 1:
        # Its micro-batches are the body of a loop, which the compiler's cost analysis counts once.
        raise ValueError(
            f"plan cannot count a step that accumulates gradients, got train.accumulate {parts}: plan one micro-batch, "
            f"--train.accumulate 1 --train.batch-size {batch_size // parts}"
        )
    impossible = None
    if batch_size % n:
        impossible = f"train.batch_size {batch_size} is not divisible by {n} chips", multiples(batch_size, n)
    elif (places := math.prod(config.parallel.mesh.values())) != n and config.parallel.mesh:
        impossible = f"parallel.mesh has {places} places for {n} chips", f"--parallel.mesh data 1 fsdp {n}"
    if impossible is not None:
        return Plan("train", topology.name, n, batch_size, 1, impossible[0], impossible[1:], {}, None)
    found = compiled("train", config, topology, image_shape)
    return judge("train", config, topology, n, batch_size, found)


def plan_sampler(config: Config, topology: chips.Topology, image_shape: tuple[int, int, int]) -> Plan:
    """The sampler of the pictures made while training, on one chip; errors as `plan_train`."""
    # The train step is not used, but must be possible for a run to be built.
    train = dataclasses.replace(config.train, batch_size=topology.num_chips, accumulate=1)
    config = dataclasses.replace(config, train=train, parallel=ParallelConfig())
    found = compiled("sampler", config, topology, image_shape)
    return judge("sampler", config, topology, 1, config.sample.num_images, found)


def check_libtpu() -> None:
    """Raises ValueError where libtpu is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("plan needs libtpu, a compiler for TPUs: pip install 'ddpm-jax[tpu-plan]'")


def compiled(
    program: str, config: Config, topology: chips.Topology, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """The answer of `worker` in a process of its own: libtpu reads its environment once, when it is loaded."""
    check_libtpu()
    request = {"program": program, "config": to_dict(config), "topology": topology.name, "image_shape": image_shape}
    with tempfile.TemporaryDirectory(prefix="ddpm_jax_plan_") as directory:
        asked, answered = Path(directory) / "request.json", Path(directory) / "result.json"
        asked.write_text(json.dumps(request))
        done = subprocess.run(
            [sys.executable, "-m", "ddpm_jax.tools.plan.worker", str(asked), str(answered)],
            env=os.environ | ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}, and nothing said"]
            raise ChildProcessError(f"the {program} program could not be compiled for {topology.name}: {said[-1]}")
        result = json.loads(answered.read_text())
    if "error" in result:
        raise ValueError(result["error"])
    return result


def judge(
    program: str, config: Config, topology: chips.Topology, num_chips: int, num_images: int, found: dict[str, Any]
) -> Plan:
    """From what the compiler said to a plan."""
    state_bytes, calls = found["state_bytes"], found["num_calls"]
    cost = None
    if "exhausted" in found:
        needed, available = memory_of(found["exhausted"])
        needed += sum(state_bytes.values())
    else:
        cost = cost_of(found, topology, num_images, num_chips)
        needed, available = cost.used_bytes, topology.chip.hbm_bytes
    problem, suggestions = None, ()
    if needed > available:
        problem = f"about {needed / chips.GIB:.2f} GiB needed of {available / chips.GIB:.2f} GiB on a chip"
        suggestions = to_fit(
            needed_bytes=needed,
            available_bytes=available,
            state_bytes=sum(state_bytes.values()),
            num_images=num_images,
            num_chips=num_chips,
            batch="train.batch_size" if program == "train" else "sample.num_images",
            remat_left=program == "train" and not getattr(config.model, "remat", True),  # autoencoders have none
            fsdp=config.parallel.mesh.get("fsdp", 1) if program == "train" else None,
        )
    return Plan(program, topology.name, num_chips, num_images, calls, problem, suggestions, state_bytes, cost)


def cost_of(found: dict[str, Any], topology: chips.Topology, num_images: int, num_chips: int) -> Cost:
    """The measurements of a worker, and the roofline's bounds."""
    memory, calls = found["memory"], found["num_calls"]
    exchanged = [Collective(**values) for values in found["collectives"]]
    flops, hbm_bytes = calls * found["flops"], calls * found["hbm_bytes"]
    bounds = roofline(flops, hbm_bytes, exchanged, topology)
    return Cost(
        argument_bytes=memory["argument"],
        activation_bytes=memory["temp"],
        code_bytes=memory["generated_code"],
        used_bytes=sum(memory.values()) - 2 * memory["alias"],  # an aliased result is one of the arguments
        flops=flops,
        hbm_bytes=hbm_bytes,
        exchanges=exchanges(exchanged),
        roofline=bounds,
        seconds=bounds.seconds,
        images_per_second=num_images / bounds.seconds,
        compile_seconds=found["compile_seconds"],
    )


def exchanges(found: Iterable[Collective]) -> tuple[Exchange, ...]:
    """Collectives, summed over those that do the same among as many chips."""
    counts, num_bytes = Counter(), Counter()
    for collective in found:
        kind = collective.operation, collective.group_size
        counts[kind] += 1
        num_bytes[kind] += collective.num_bytes
    return tuple(
        Exchange(operation, size, counts[operation, size], num_bytes[operation, size])
        for operation, size in sorted(counts)
    )


def memory_of(message: str) -> tuple[int, int]:
    """(needed, available) bytes of the program, from the compiler's words about memory that does not suffice.

    Raises:
      ChildProcessError: words that are not understood.
    """
    number = r"([\d.]+)([KMGT])"
    for form in (rf"\({number}\) exceeds available HBM \({number}\)", rf"Used {number} of {number} hbm"):
        if match := re.search(form, message):
            needed, unit, available, unit_available = match.groups()
            return int(float(needed) * UNITS[unit]), int(float(available) * UNITS[unit_available])
    raise ChildProcessError(f"the compiler ran out of memory: {message}")
