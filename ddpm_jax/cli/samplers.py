"""ddpm-jax samplers"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from ddpm_jax import build
from ddpm_jax.cli.parsing import parse
from ddpm_jax.config.run import ScheduleConfig
from ddpm_jax.distil import files as learned_files
from ddpm_jax.names import unknown
from ddpm_jax.samplers import Table, show
from ddpm_jax.samplers.catalogue import ALIASES, CATALOGUE, GRIDS, ORDERS, make_table

USAGE = """  samplers                                                          list the samplers
  samplers show NAME|FILE.json [--num-steps 10] [--grid karras]     a sampler's table, as assignments"""


@dataclasses.dataclass(frozen=True)
class ShowArguments:
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """One of those that `ddpm-jax samplers` lists, or a FILE.json of learn-sampler."""
    num_steps: int | None = None
    """10 by default."""
    grid: str | None = None
    """One of the grids that `ddpm-jax samplers` lists; None is the sampler's own."""
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)


def list_samplers(argv: list[str]) -> None:
    """List all samplers, or show one as a table."""
    if argv[:1] in (["-h"], ["--help"]):
        print("\n".join(line.strip() for line in USAGE.splitlines()))
        return
    if argv:
        if argv[0] != "show":
            raise unknown("subcommand of samplers", argv[0], ["show"])
        arguments = parse(ShowArguments, argv[1:], "samplers show")
        print(show(_table(arguments)))
        return
    schedule = build.make_schedule(ScheduleConfig())
    width = max(map(len, CATALOGUE))
    print(f"{'name':{width}}  calls for 20 steps  order  noise  source")
    for name, entry in CATALOGUE.items():
        calls, noise = make_table(name, schedule, 20).num_calls, "yes" if entry.stochastic else "no"
        print(f"{name:{width}}  {calls:18}  {entry.order:5}  {noise:5}  {entry.source}")
    print(f"{ORDERS}\nk-diffusion's names: {', '.join(f'{alias} = {known}' for alias, known in ALIASES.items())}")
    print(f"grids: {', '.join(GRIDS)}")


def _table(arguments: ShowArguments) -> Table:
    if not learned_files.is_file(arguments.name):
        schedule, num_steps = build.make_schedule(arguments.schedule), arguments.num_steps
        return make_table(arguments.name, schedule, 10 if num_steps is None else num_steps, arguments.grid)
    if arguments != ShowArguments(arguments.name):
        raise ValueError(
            f"{arguments.name} has its own steps: --num-steps, --grid and --schedule are for other samplers"
        )
    return learned_files.load(Path(arguments.name)).table()
