"""ddpm-jax train"""

import contextlib
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated

import tyro

from ddpm_jax.cli.parsing import parse_run
from ddpm_jax.config.networks import NetworkName
from ddpm_jax.config.run import Config
from ddpm_jax.host import processes
from ddpm_jax.host.bars import Bar
from ddpm_jax.train import loop


@dataclasses.dataclass(frozen=True)
class TrainArguments:
    config: Annotated[Config, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Config)
    model: NetworkName = "unet"
    """The network, whose settings the options --model.NAME are."""
    workdir: Path | None = None
    """The run's directory; runs/NAME by default, NAME being that of the experiment file or the data."""
    coordinator: str | None = None
    """HOST:PORT of process 0, to train in several processes; found by itself on a TPU slice and in a Slurm step."""
    num_processes: int | None = None
    """Of all."""
    process_id: int | None = None
    """Of this one, from 0."""
    wait_seconds: float | None = None
    """For the others to start; 45 by default, 300 where they are found by themselves."""


def train(argv: list[str]) -> None:
    """Train a configuration and say where the pictures are."""
    arguments, experiment = parse_run(TrainArguments, argv, "train")
    config = arguments.config
    workdir = arguments.workdir or Path("runs") / Path(experiment or config.data.name).stem
    others = (arguments.coordinator, arguments.num_processes, arguments.process_id, arguments.wait_seconds)
    processes.start(*others, say=lambda message: print(f"ddpm-jax: {message}", file=sys.stderr))
    print(f"run directory: {workdir}" + processes.description())
    with contextlib.closing(Bar()) as bar:
        step = loop.fit(config, workdir, bar)
    if not processes.is_first():
        return
    if step < config.train.num_steps:
        print(f"stopped after {step} steps; the same command goes on from there")
        return
    asked = config.train.num_steps
    more = "" if step == asked else f", which is more than --train.num-steps {asked}: nothing was trained now"
    done = f"trained for {step} steps{more}"
    if config.task == "classifier":
        print(f"{done}; accuracy by t: {workdir / 'accuracy.png'}, loss: {workdir / 'loss.png'}")
        print(f"it guides a diffusion model: ddpm_jax.opening.classifier({str(workdir)!r}).log_prob_gradient(y)")
        return
    if config.task == "autoencoder":
        print(f"{done}; images above their reconstructions: {workdir / 'samples.png'}, loss: {workdir / 'loss.png'}")
        print(f"latents of its images: ddpm-jax encode {shlex.quote(str(workdir))}")
        return
    print(f"{done}; pictures: {workdir / 'samples.png'}, loss: {workdir / 'loss.png'}")
    print(f"more pictures: ddpm-jax sample {shlex.quote(str(workdir))} --sampler ddim --num-steps 50 -n 64 --seed 1")
