"""ddpm-jax train"""

import contextlib
import dataclasses
import shlex
from pathlib import Path
from typing import Annotated

import tyro

from ddpm_jax.cli.parsing import load_experiment, parse
from ddpm_jax.config.run import Config
from ddpm_jax.host import processes
from ddpm_jax.host.bars import Bar
from ddpm_jax.train import loop


@dataclasses.dataclass(frozen=True)
class TrainArguments:
    config: Annotated[Config, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Config)
    workdir: Path | None = None
    """The run's directory; runs/NAME by default, NAME being that of the experiment file or the data."""
    coordinator: str | None = None
    """HOST:PORT of process 0, to train in several processes; found by itself on a TPU slice and in a Slurm step."""
    num_processes: int | None = None
    """Of all."""
    process_id: int | None = None
    """Of this one, from 0."""


def train(argv: list[str]) -> None:
    """Train a configuration and say where the pictures are."""
    default, name = Config(), None
    if argv and not argv[0].startswith("-"):
        default, name = load_experiment(Path(argv[0])), Path(argv[0]).stem
        argv = argv[1:]
    arguments = parse(TrainArguments, argv, "train", TrainArguments(default))
    config = arguments.config
    workdir = arguments.workdir or Path("runs") / (name or Path(config.data.name).stem)
    processes.start(arguments.coordinator, arguments.num_processes, arguments.process_id)
    print(f"run directory: {workdir}" + processes.description())
    with contextlib.closing(Bar()) as bar:
        step = loop.fit(config, workdir, bar)
    if not processes.is_first():
        return
    if step < config.train.num_steps:
        print(f"stopped after {step} steps; the same command goes on from there")
        return
    print(f"trained for {step} steps; pictures: {workdir / 'samples.png'}, loss: {workdir / 'loss.png'}")
    print(f"more pictures: ddpm-jax sample {shlex.quote(str(workdir))} --sampler ddim --num-steps 50 -n 64 --seed 1")
