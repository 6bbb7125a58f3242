"""The command `learn-sampler`: a run in, a table as JSON beside its checkpoints out."""

import datetime
import importlib.metadata
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from ddpm_jax import checkpoint, drawing
from ddpm_jax.learn import files
from ddpm_jax.learn.family import Numbers, later, numbers_of, table_of, times_of
from ddpm_jax.learn.fit import HELD_OUT, Errors, Fitted, Network, Pairs, Program, Report, draw, errors_of, fit, pair_key
from ddpm_jax.learn.start import HandMade, hand_made, ranked
from ddpm_jax.samplers.catalogue import make_table
from ddpm_jax.schedules import Schedule
from ddpm_jax.train.config import MOST_SEED
from ddpm_jax.train.fields import at_least

FOLDER = "samplers"
# How near 100 of its calls are to more of them: docs/learned_samplers.md.
TEACHER, TEACHER_GRID = "unipc", "karras"
# Where a fit begins, in units of the start's times. Near T - 1 a call says little, and hand-made grids spend one there;
# how late the first call is best made is a question of valleys, which no fit leaves.
SHARES = (1.0, 0.8, 0.65, 0.5)
TRIAL_UPDATES = 6


@dataclass(frozen=True)
class LearnArguments:
    workdir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="WORKDIR")]
    """A run's directory."""
    num_steps: int = 6
    """Calls of the network that the sampler may make."""
    name: str | None = None
    """The file is WORKDIR/samplers/NAME.json; learned_NUM_STEPS by default."""
    num_pairs: int = 192
    """Images of the teacher to learn from."""
    num_held_out: int = 128
    """Other images of the teacher, on which errors are measured."""
    num_updates: int = 12
    """Gauss-Newton updates."""
    batch_size: int = 32
    """Images at once; the number of pairs and of held-out images are multiples of it."""
    teacher_steps: int = 100
    """Calls of the teacher, which is unipc on the grid karras."""
    start: str | None = None
    """The sampler to begin with; by default the best of all on the first batch of pairs."""
    start_grid: str | None = None
    """Its grid; its own by default."""
    seed: int = 0
    """Of the noise that the teacher's images begin with."""


def run(arguments: LearnArguments, report: Report) -> tuple[Path, Errors, Errors]:
    """Learn a table and write it: where, its held-out errors, and those of its start.

    Raises:
      FileNotFoundError: no run, or no checkpoint.
      FileExistsError: there is a file of this name.
      ValueError: numbers out of range; a start that cannot be learned from; learning that lowered no error.
      FloatingPointError: a teacher's image that is not finite.
    """
    _check(arguments)
    name = arguments.name or f"learned_{arguments.num_steps}"
    path = arguments.workdir / FOLDER / f"{name}.json"
    files.refuse_existing(path)
    source = drawing.of_run(arguments.workdir, report.say)
    schedule = source.schedule
    teacher = make_table(TEACHER, schedule, arguments.teacher_steps, TEACHER_GRID)
    make_denoise = lambda params: source.denoiser(source.model_fn(params))
    network = Network(make_denoise, (jax.device_put(source.params),), source.image_shape)
    pairs, held_out = _teach(network, teacher, arguments, report)
    begin = _start(schedule, network, pairs, arguments, report)
    before = errors_of(network, begin.table, held_out, arguments.batch_size)
    share, found = _fitted(network, schedule, numbers_of(begin.table, schedule), pairs, held_out, arguments, report)
    table = jax.tree.map(np.asarray, table_of(jax.tree.map(np.float32, found.numbers), times_of(schedule)))
    learned = files.from_table(table, _made(arguments, source, begin, share, found.held_out))
    after = errors_of(network, learned.table(), held_out, arguments.batch_size)  # of the file, not of the fit
    if not after.geometric_mean < before.geometric_mean:
        raise ValueError(
            f"learning did not help: held-out error {after.geometric_mean:.4f}, that of {begin.name} "
            f"{before.geometric_mean:.4f}; nothing is written. Take more --num-pairs"
        )
    files.save(path, learned)
    return path, after, before


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


def _teach(network: Network, teacher: Any, arguments: LearnArguments, report: Report) -> tuple[Pairs, Pairs]:
    key = pair_key(arguments.seed)
    report.start("teacher", arguments.num_pairs + arguments.num_held_out, "image")

    def made(first: int, count: int) -> Pairs:
        return Pairs(key, first, draw(network, teacher, key, first, count, arguments.batch_size, report.advance))

    return made(0, arguments.num_pairs), made(HELD_OUT, arguments.num_held_out)


def _start(schedule: Schedule, network: Network, pairs: Pairs, arguments: LearnArguments, report: Report) -> HandMade:
    """The table asked for; or the nearest to the teacher on the first batch that can be learned from."""
    n = arguments.num_steps
    if arguments.start is not None:
        table = make_table(arguments.start, schedule, n, arguments.start_grid)
        if table.num_calls != n:
            raise ValueError(f"start must call the network {n} times, {arguments.start!r} does {table.num_calls} times")
        return HandMade(arguments.start, arguments.start_grid or "its own grid", table)
    report.say("looking for the best hand-made table to begin with")
    candidates = [item for item in hand_made(schedule, n) if _fits(item, schedule)]
    first = pairs._replace(targets=pairs.targets[: arguments.batch_size])
    best = ranked(candidates, network, first)[0]
    report.say(f"beginning with {best.name}, the best of {len(candidates)}")
    return best


def _fitted(
    network: Network,
    schedule: Schedule,
    start: Numbers,
    pairs: Pairs,
    held_out: Pairs,
    arguments: LearnArguments,
    report: Report,
) -> tuple[float, Fitted]:
    """From the start at several shares of its times, on one batch; from what is nearest on all pairs, on all pairs.

    Returns the share, and the numbers with the held-out errors of both fits.
    """
    size = arguments.batch_size
    few = pairs._replace(targets=pairs.targets[:size])
    program = Program(network, times_of(schedule), start, size)
    fit_on = lambda numbers, taught, num_updates: fit(
        program, numbers, taught, held_out, num_updates=num_updates, report=report
    )
    trials: dict[float, Fitted] = {}
    reached: dict[float, float] = {}
    for share in SHARES:
        trials[share] = fit_on(later(start, share), few, min(TRIAL_UPDATES, arguments.num_updates))
        reached[share] = program.errors(trials[share].numbers, pairs).geometric_mean
        report.say(f"begun at {share:g} of its times: error {reached[share]:.4f} on all pairs")
    best = min(SHARES, key=lambda share: np.nan_to_num(reached[share], nan=np.inf))
    found = fit_on(trials[best].numbers, pairs, arguments.num_updates)
    return best, found._replace(held_out=trials[best].held_out + found.held_out[1:])


def _fits(item: HandMade, schedule: Schedule) -> bool:
    try:
        numbers_of(item.table, schedule)
    except ValueError:
        return False
    return True


def _made(
    arguments: LearnArguments, source: drawing.Source, begin: HandMade, share: float, held_out: list[Errors]
) -> dict[str, Any]:
    """All that a file needs to be made again, and what came out; plain JSON values."""
    config = checkpoint.load_run(arguments.workdir).config
    options = {name: value for name, value in asdict(arguments).items() if name not in ("workdir", "name")}
    return {
        "date": datetime.date.today().isoformat(),
        "versions": {name: importlib.metadata.version(name) for name in ("ddpm-jax", "jax", "numpy")},
        "run": {
            "directory": str(arguments.workdir.absolute()),
            "step": source.step,
            "schedule": asdict(config.schedule),
            "prediction": config.objective.prediction,
        },
        "options": options,
        "teacher": f"{TEACHER} on {TEACHER_GRID}, {arguments.teacher_steps} calls",
        "begun_with": begin.name,
        "begun_at": share,
        "held_out_errors": [error._asdict() for error in held_out],
    }
