"""The command `learn-sampler`: a trained network in, a table as JSON out: of a run, beside its checkpoints."""

import datetime
import importlib.metadata
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from ddpm_jax import opening
from ddpm_jax.config.fields import at_least
from ddpm_jax.config.run import MOST_SEED
from ddpm_jax.distil import files
from ddpm_jax.distil.family import numbers_of, table_of, times_of
from ddpm_jax.distil.fit import HELD_OUT, Errors, Network, Pairs, Program, Report, draw, errors_of, fit, pair_key
from ddpm_jax.distil.regression import Regression, TeacherPath, path_of, searched
from ddpm_jax.distil.start import HandMade, hand_made, ranked
from ddpm_jax.samplers import Table
from ddpm_jax.samplers.catalogue import make_table
from ddpm_jax.schedules import Schedule
from ddpm_jax.trained import Trained

FOLDER = "samplers"
# How near 100 of its calls are to more of them: docs/learned_samplers.md.
TEACHER, TEACHER_GRID = "unipc", "karras"
NEAREST = 6  # grids of hand-made tables with which the search of times begins


@dataclass(frozen=True)
class LearnArguments:
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A run's directory; a folder or checkpoint of another project; or hf:OWNER/NAME."""
    num_steps: int = 6
    """Calls of the network that the sampler may make."""
    name: str | None = None
    """The file is NAME.json in the folder of --out; learned_NUM_STEPS by default."""
    num_pairs: int = 192
    """Images of the teacher to learn from; the host holds teacher_steps states of each."""
    num_held_out: int = 128
    """Other images of the teacher, on which errors are measured."""
    num_updates: int = 40
    """Most Gauss-Newton updates; it ends before where they gain little."""
    batch_size: int = 32
    """Images at once; the number of pairs and of held-out images are multiples of it."""
    teacher_steps: int = 100
    """Calls of the teacher, which is unipc on the grid karras."""
    start: str | None = None
    """The sampler whose times the search begins with; by default the best of all on the first batch of pairs."""
    start_grid: str | None = None
    """Its grid; its own by default."""
    seed: int = 0
    """Of the noise that the teacher's images begin with."""
    config: Path | None = None
    """As in sample."""
    out: Path | None = None
    """The folder of the file; WORKDIR/samplers of a run, ./NAME_samplers of all else."""


def run(arguments: LearnArguments, report: Report) -> tuple[Path, Errors, Errors]:
    """Learn a table and write it: where, its held-out errors, and those of its start.

    Raises:
      FileNotFoundError: nothing there, or no checkpoint.
      FileExistsError: there is a file of this name.
      ValueError: numbers out of range; a start that cannot be learned from; learning that lowered no error; a network
        that is told more than x_t and t.
      FloatingPointError: a teacher's image that is not finite.
    """
    _check(arguments)
    trained = opening.open(arguments.source, report.say, config=arguments.config)
    folder = arguments.out or opening.results(arguments.source, trained, FOLDER)
    path = folder / f"{arguments.name or f'learned_{arguments.num_steps}'}.json"
    files.refuse_existing(path)
    trained.check_conditions("learn-sampler")
    schedule = trained.schedule
    if arguments.num_steps >= schedule.num_timesteps:
        raise ValueError(
            f"num_steps must be below the {schedule.num_timesteps} timesteps of the schedule, got {arguments.num_steps}"
        )
    times = times_of(schedule)
    teacher = make_table(TEACHER, schedule, arguments.teacher_steps, TEACHER_GRID)
    network = network_of(trained)
    way, pairs, held_out = _teach(network, teacher, arguments, report)
    begin = _start(schedule, network, pairs, arguments, report)
    before = errors_of(network, begin[0].table, held_out, arguments.batch_size)
    regressed = searched(Regression(network, times, way, arguments.batch_size), _grids(begin), report)
    program = Program(network, times, arguments.num_steps, arguments.batch_size)
    found = fit(program, regressed, pairs, held_out, num_updates=arguments.num_updates, report=report)
    table = jax.tree.map(np.asarray, table_of(jax.tree.map(np.float32, found.numbers), times))
    learned = files.from_table(table, _made(arguments, trained, begin[0].name, before, found.held_out))
    after = errors_of(network, learned.table(), held_out, arguments.batch_size)  # of the file, not of the fit
    if not after.geometric_mean < before.geometric_mean:
        raise ValueError(
            f"learning did not help: held-out error {after.geometric_mean:.4f}, that of {begin[0].name} "
            f"{before.geometric_mean:.4f}; nothing is written. Take more --num-pairs"
        )
    files.save(path, learned)
    return path, after, before


def network_of(trained: Trained) -> Network:
    """Its parameters are data."""
    make_denoise = lambda params: trained.denoiser(trained.model_fn(params))
    return Network(make_denoise, (jax.device_put(trained.params),), trained.image_shape)


def _check(arguments: LearnArguments) -> None:
    for name in ("num_steps", "num_pairs", "num_held_out", "num_updates", "batch_size", "teacher_steps"):
        at_least(name, getattr(arguments, name))
    at_least("seed", arguments.seed, 0, most=MOST_SEED)
    for name in ("num_pairs", "num_held_out"):
        if getattr(arguments, name) % arguments.batch_size:
            raise ValueError(
                f"{name} must be a multiple of batch_size, got {getattr(arguments, name)} and {arguments.batch_size}"
            )
    if arguments.name is not None and (not arguments.name or Path(arguments.name).name != arguments.name):
        raise ValueError(f"name must be that of a file without a directory, got {arguments.name!r}")
    if arguments.start is None and arguments.start_grid is not None:
        raise ValueError(f"start_grid is for start, got {arguments.start_grid!r} without it")


def _teach(
    network: Network, teacher: Table, arguments: LearnArguments, report: Report
) -> tuple[TeacherPath, Pairs, Pairs]:
    """The teacher's path of the pairs, the pairs at its end, and the held-out ones."""
    key, size = pair_key(arguments.seed), arguments.batch_size
    report.start("teacher", arguments.num_pairs + arguments.num_held_out, "image")
    way = path_of(network, teacher, key, 0, arguments.num_pairs, size, report.advance)
    held_out = draw(network, teacher, key, HELD_OUT, arguments.num_held_out, size, report.advance)
    return way, Pairs(key, 0, way.states[-1]), Pairs(key, HELD_OUT, held_out)


def _start(
    schedule: Schedule, network: Network, pairs: Pairs, arguments: LearnArguments, report: Report
) -> list[HandMade]:
    """The table asked for; or all that can be learned from, the nearest to the teacher on the first batch first."""
    n = arguments.num_steps
    if arguments.start is not None:
        table = make_table(arguments.start, schedule, n, arguments.start_grid)
        if table.num_calls != n:
            raise ValueError(f"start must call the network {n} times, {arguments.start!r} does {table.num_calls} times")
        numbers_of(table, schedule)  # it raises where the table is not one of the family
        return [HandMade(arguments.start, arguments.start_grid or "its own grid", table)]
    report.say("looking for the best hand-made table")
    candidates = [item for item in hand_made(schedule, n) if _fits(item, schedule)]
    found = ranked(candidates, network, pairs._replace(targets=pairs.targets[: arguments.batch_size]))
    report.say(f"beginning with the times of {found[0].name}, the best of {len(found)}")
    return found


def _grids(items: list[HandMade]) -> list[np.ndarray]:
    """The times of the first tables with different ones."""
    different: dict[tuple[float, ...], np.ndarray] = {}
    for item in items:
        different.setdefault(tuple(np.round(item.table.rows.time)), item.table.rows.time)
    return list(different.values())[:NEAREST]


def _fits(item: HandMade, schedule: Schedule) -> bool:
    try:
        numbers_of(item.table, schedule)
    except ValueError:
        return False
    return True


def _made(
    arguments: LearnArguments, trained: Trained, begin: str, before: Errors, held_out: list[Errors]
) -> dict[str, Any]:
    """All that a file needs to be made again, and what came out; plain JSON values."""
    where = ("source", "name", "config", "out")
    options = {name: value for name, value in asdict(arguments).items() if name not in where}
    return {
        "date": datetime.date.today().isoformat(),
        "versions": {name: importlib.metadata.version(name) for name in ("ddpm-jax", "jax", "numpy")},
        "network": {
            "source": _absolute(arguments.source),
            "origin": trained.origin,
            "step": trained.step,
            "weights": trained.weights,
            "schedule": trained.scheduler_config if trained.run is None else asdict(trained.run.schedule),
            "prediction": trained.prediction,
        },
        "options": options,
        "teacher": f"{TEACHER} on {TEACHER_GRID}, {arguments.teacher_steps} calls",
        "begun_with": begin,
        "its_held_out_error": before._asdict(),
        "held_out_errors": [error._asdict() for error in held_out],
    }


def _absolute(source: str) -> str:
    return source if source.startswith("hf:") else str(Path(source).absolute())
