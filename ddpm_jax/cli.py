"""The command line, and the only module that prints: see USAGE."""

import contextlib
import dataclasses
import importlib.util
import io
import math
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import jax
import numpy as np
import tyro
from tqdm import tqdm

from ddpm_jax import drawing, export, interop, pictures, posthoc, processes, quiet
from ddpm_jax.bars import Bar, LearnBar, NllBar
from ddpm_jax.bench import command as bench
from ddpm_jax.evaluate import nll
from ddpm_jax.learn import command as learning
from ddpm_jax.learn import files as learned_files
from ddpm_jax.names import choose, unknown
from ddpm_jax.parity import command as parity_command
from ddpm_jax.plan import command
from ddpm_jax.samplers import show
from ddpm_jax.samplers.catalogue import ALIASES, CATALOGUE, GRIDS, ORDERS, make_table
from ddpm_jax.train import build, loop
from ddpm_jax.train.config import Config, ScheduleConfig

USAGE = """usage: ddpm-jax COMMAND ...

  train [EXPERIMENT.py] [--workdir DIR] [--train.num-steps N ...]   train, or go on where a run stopped
  sample SOURCE [--sampler ddim] [--num-steps 50] [-n 64]           pictures from a trained run, a diffusers folder, ...
  convert SOURCE FOLDER                                             write it as a folder that diffusers loads
  nll WORKDIR [--split test] [-n 1000] [--num-steps 100]            bits/dim: the variational bound, term by term
  plan [EXPERIMENT.py] --topology v5e:4x8 [--json FILE]             memory and time on TPUs, without a TPU
  parity [--golden FOLDER] [--json FILE] [--html FILE]              beside the installed PyTorch and diffusers
  bench [PART ...] [--model cifar10] [--out FOLDER]                 times beside PyTorch, error against steps; a report
  learn-sampler WORKDIR [--num-steps 6]                             fit a sampler of few calls to a trained run
  samplers                                                          list the samplers
  samplers show NAME|FILE.json [--num-steps 10] [--grid karras]     a sampler's table, as assignments

ddpm-jax COMMAND --help lists every option."""


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


@dataclasses.dataclass(frozen=True)
class SampleArguments:
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A run's directory; a folder or checkpoint of another project; or hf:OWNER/NAME."""
    sampler: str | None = None
    """One of those that `ddpm-jax samplers` lists, or a FILE.json of learn-sampler; by default the run's
    sample.sampler, or the one that a folder came with."""
    num_steps: int | None = None
    """Steps, by default the run's sample.num_steps, or 50; `ddpm-jax samplers` says how many network calls they are."""
    grid: str | None = None
    """Where the steps are: one of the grids that `ddpm-jax samplers` lists; None is the sampler's own."""
    timesteps: tuple[int, ...] | None = None
    """Which of the training's timesteps to visit, instead of num_steps of them, such as those that nll finds."""
    num_images: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    seed: int = 0
    """Image i of a seed begins with the same noise whatever num_images and batch_size are."""
    batch_size: int = 64
    """Images drawn at once."""
    label: int | None = None
    """The class of all images, where the network has classes; by default image i is of class i, counted around."""
    guidance_scale: float | None = None
    """Of classifier-free guidance u + scale (c - u), where the network has a label that stands for no class."""
    ema_decay: float | None = None
    """The decay of the average of a run's parameters: one that it keeps; optimizer.ema_decay by default."""
    ema_sigma: float | None = None
    """The width of a power function instead: any that its snapshots of optimizer.ema_sigmas give."""
    config: Path | None = None
    """FILE.json with what a network of another project does not say itself, as interop.load(config=) takes it."""
    out: str | None = None
    """A .png picture of all images side by side; .npz with uint8 images [N, H, W, C], also as ADM's arr_0 (labels:
    arr_1); FOLDER/, new or empty, for numbered .png; by default a picture in the run's or the working directory."""


# ------------------------------------------------------------------------------------------------------------ train


def train(argv: list[str]) -> None:
    """Train a configuration and say where the pictures are."""
    default, name = Config(), None
    if argv and not argv[0].startswith("-"):
        default, name = load_experiment(Path(argv[0])), Path(argv[0]).stem
        argv = argv[1:]
    arguments = _parse(TrainArguments, argv, "train", TrainArguments(default))
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


# What a file of Python can end in by mistake.
FAULTS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, NameError, OSError,
          RuntimeError, SyntaxError, TypeError, ValueError)  # fmt: skip


def load_experiment(path: Path) -> Config:
    """The `config` of a Python file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is not Python, it fails, or it does not define a Config called config.
    """
    if not path.is_file() or path.suffix != ".py":
        raise FileNotFoundError(f"no experiment file {path} (a .py file that defines config); images are --data.name")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except FAULTS as error:
        lines = [f"line {frame.lineno}: " for frame in traceback.extract_tb(error.__traceback__)
                 if frame.filename == str(path)]  # fmt: skip
        raise ValueError(f"{path}: {''.join(lines[-1:])}{type(error).__name__}: {error}") from error
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise ValueError(f"{path} must define config, a ddpm_jax.train.config.Config, got {type(config).__name__}")
    return config


# ----------------------------------------------------------------------------------------------------------- sample


def sample(argv: list[str]) -> None:
    """Draw images from a run's averaged parameters, or from the weights of another project."""
    arguments = _parse(SampleArguments, argv, "sample")
    save = pictures.saver(arguments.out) if arguments.out else None
    place, average = Path(arguments.source), posthoc.Average(arguments.ema_decay, arguments.ema_sigma)
    export.check_options(place, average, arguments.config)
    is_run = export.is_run(place)
    if is_run:
        source = drawing.of_run(place, print, average)
    else:
        loaded = export.load(arguments.source, print, average, arguments.config)
        print(loaded.origin)
        source = drawing.of_loaded(loaded)
    spacing = arguments.num_steps, arguments.grid, arguments.timesteps
    preset = drawing.preset(source, arguments.sampler, *spacing, print)
    labels = drawing.labels(source, arguments.label, arguments.guidance_scale)
    n = arguments.num_images
    drawn = drawing.pictures(source, preset, labels, n, arguments.batch_size, arguments.seed)
    batches = []
    with tqdm(total=n, unit="image") as bar:
        for batch in drawn:
            batches.append(batch)
            bar.update(len(batch))
    out = arguments.out or str((place if is_run else Path()) / default_name(arguments, source, is_run))
    (save or pictures.saver(out))(np.concatenate(batches), labels.of(0, n))
    print(f"{n} images: {out}")


def default_name(arguments: SampleArguments, drawn: drawing.Source, is_run: bool) -> str:
    """The name of a picture by what it was drawn with; of no run, also from what."""
    chosen = arguments.timesteps
    spacing = (arguments.num_steps or drawn.num_steps) if chosen is None else f"{len(chosen)}chosen"
    label = None if arguments.label is None else f"label{arguments.label}"
    source = None if is_run else Path(arguments.source).absolute().stem
    decay = None if arguments.ema_decay is None else f"decay{arguments.ema_decay}"
    sigma = None if arguments.ema_sigma is None else f"sigma{arguments.ema_sigma}"
    name = arguments.sampler or drawn.sampler
    if name is not None and learned_files.is_file(name):
        name, spacing = Path(name).stem, None
    which = [source, name, arguments.grid, spacing, label, decay, sigma]
    parts = [*which, f"seed{arguments.seed}"]
    return "_".join(str(part) for part in parts if part is not None) + ".png"


# ---------------------------------------------------------------------------------------------------------- convert


@dataclasses.dataclass(frozen=True)
class ConvertArguments:
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A run's directory; a folder or checkpoint of another project; or hf:OWNER/NAME."""
    destination: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """A new or empty directory."""
    ema_decay: float | None = None
    """As in sample: which average of a run's parameters."""
    ema_sigma: float | None = None
    """As in sample."""
    config: Path | None = None
    """As in sample."""


def convert(argv: list[str]) -> None:
    """Write a run, or the weights of another project, as a folder that diffusers loads."""
    arguments = _parse(ConvertArguments, argv, "convert")
    average = posthoc.Average(arguments.ema_decay, arguments.ema_sigma)
    loaded = export.load(arguments.source, print, average, arguments.config)
    interop.save_diffusers(arguments.destination, loaded)
    height, width, channels = loaded.image_shape
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(loaded.params)]
    kind = "images" if loaded.first_stage is None else "latents"
    print(f"{loaded.origin}: {sum(sizes):,} parameters, {kind} of {height} x {width} x {channels}")
    print(f"written for diffusers: {arguments.destination}")
    print(f"pictures: ddpm-jax sample {shlex.quote(str(arguments.destination))}")


# -------------------------------------------------------------------------------------------------------------- nll


@dataclasses.dataclass(frozen=True)
class NllArguments:
    workdir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="WORKDIR")]
    """A run's directory."""
    split: str | None = None
    """Of the run's data; "test" by default, or the split of the training where the data has no test split."""
    num_images: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """The first so many images of the split; all by default."""
    batch_size: int = 64
    """Images at once; the noise of image i of a seed is the same whatever it is."""
    seed: int = 0
    num_steps: int | None = None
    """Of the strided process, at evenly spread timesteps; every timestep of the training by default."""
    optimal_steps: tuple[int, ...] | None = None
    """Find the best timesteps for so many steps; 10 20 50 by default."""


def negative_log_likelihood(argv: list[str]) -> None:
    """The variational bound of a run's newest checkpoint: bits/dim, where they go, and files with all of it."""
    arguments = _parse(NllArguments, argv, "nll")
    options = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(arguments)}
    with contextlib.closing(NllBar()) as bar:
        folder, summary = nll.evaluate(report=bar, **options)
    bits = summary["bits_per_dim"]
    error = bits["total"]["standard_error"]
    print(f"bits/dim {bits['total']['mean']:.4f}" + ("" if error is None else f" ± {error:.4f}"), end=": ")
    print(", ".join(f"{name} {bits[name]['mean']:.4f}" for name in ("prior", "transitions", "decoder")))
    for n, found in summary["optimal"]["steps"].items():
        print(f"transitions in {n} steps: {found['transitions']:.4f}, evenly spread {found['transitions_even']:.4f}")
    print(f"terms, rate-distortion curve, timesteps: {folder}")


# ------------------------------------------------------------------------------------------------------------- plan


def plan(argv: list[str]) -> None:
    """Compile a configuration's programs for TPU slices and show what they need."""
    default = Config()
    if argv and not argv[0].startswith("-"):
        default, argv = load_experiment(Path(argv[0])), argv[1:]
    command.run(_parse(command.PlanArguments, argv, "plan", command.PlanArguments(default)), print)


def learn_sampler(argv: list[str]) -> None:
    """Fit the numbers and times of a table to a run's network, and say how to draw with it."""
    arguments = _parse(learning.LearnArguments, argv, "learn-sampler")
    with contextlib.closing(LearnBar()) as bar:
        path, after, before = learning.run(arguments, bar)
    print(f"held-out error {after.geometric_mean:.4f} (rms {after.rms:.4f}), "
          f"of the sampler it began with {before.geometric_mean:.4f} (rms {before.rms:.4f})")  # fmt: skip
    print(f"pictures: ddpm-jax sample {shlex.quote(str(arguments.workdir))} --sampler {shlex.quote(str(path))}")


# --------------------------------------------------------------------------------------------------------- samplers


@dataclasses.dataclass(frozen=True)
class ShowArguments:
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """One of those that `ddpm-jax samplers` lists, or a FILE.json of learn-sampler."""
    num_steps: int = 10
    grid: str | None = None
    """One of the grids that `ddpm-jax samplers` lists; None is the sampler's own."""
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)


def list_samplers(argv: list[str]) -> None:
    """List all samplers, or show one as a table."""
    if argv[:1] in (["-h"], ["--help"]):
        print("\n".join(line.strip() for line in USAGE.splitlines() if line.startswith("  samplers")))
        return
    if argv:
        if argv[0] != "show":
            raise unknown("subcommand of samplers", argv[0], ["show"])
        arguments = _parse(ShowArguments, argv[1:], "samplers show")
        if learned_files.is_file(arguments.name):
            print(show(learned_files.load(Path(arguments.name)).table()))
            return
        schedule = build.make_schedule(arguments.schedule)
        print(show(make_table(arguments.name, schedule, arguments.num_steps, arguments.grid)))
        return
    schedule = build.make_schedule(ScheduleConfig())
    width = max(map(len, CATALOGUE))
    print(f"{'name':{width}}  calls for 20 steps  order  noise  source")
    for name, entry in CATALOGUE.items():
        calls, noise = make_table(name, schedule, 20).num_calls, "yes" if entry.stochastic else "no"
        print(f"{name:{width}}  {calls:18}  {entry.order:5}  {noise:5}  {entry.source}")
    print(f"{ORDERS}\nk-diffusion's names: {', '.join(f'{alias} = {known}' for alias, known in ALIASES.items())}")
    print(f"grids: {', '.join(GRIDS)}")


# ------------------------------------------------------------------------------------------------------------- main

T = TypeVar("T")
COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "sample": sample,
    "convert": convert,
    "nll": negative_log_likelihood,
    "parity": lambda argv: parity_command.run(_parse(parity_command.ParityArguments, argv, "parity"), print),
    "plan": plan,
    "bench": lambda argv: bench.run(argv, print),
    "learn-sampler": learn_sampler,
    "samplers": list_samplers,
}


RESUMING = ("train", "nll")


def _parse(cls: type[T], argv: list[str], command: str, default: T = tyro.MISSING_NONPROP) -> T:
    """tyro's parser; its framed errors as one line."""
    errors = io.StringIO()
    columns = os.environ.get("COLUMNS")
    try:
        if "-h" not in argv and "--help" not in argv:
            os.environ["COLUMNS"] = "1000"  # so that tyro does not wrap
        with contextlib.redirect_stderr(errors):
            return tyro.cli(cls, prog=f"ddpm-jax {command}", args=argv, default=default)
    except SystemExit as stop:
        if stop.code == 0:
            raise
        lines = [line.strip("│╭╮╰╯─ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", errors.getvalue()).splitlines()]
        raise ValueError(" ".join(line for line in lines[1:] if line.strip("-") and "helptext" not in line)) from None
    finally:
        os.environ.pop("COLUMNS", None) if columns is None else os.environ.update(COLUMNS=columns)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command. A user's error ends in one line on stderr and exit status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    if not os.environ.get("DDPM_JAX_TRACEBACK"):
        quiet.threads()
    try:
        choose("command", arguments[0], COMMANDS)(arguments[1:])
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from what it has written" if arguments[0] in RESUMING else ""
        print(f"ddpm-jax: stopped{goes_on}", file=sys.stderr)
        processes.leave(1)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("DDPM_JAX_TRACEBACK"):
            raise
        print(f"ddpm-jax: {' '.join(str(error).split())}", file=sys.stderr)
        processes.leave(2)
