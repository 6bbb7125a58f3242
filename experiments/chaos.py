"""Kill a run at random moments, and start it again, until it ends: are its bits those of a run left alone?

    python experiments/chaos.py --kills 200 --processes 1 2
    python experiments/chaos.py --kind readers --kills 100
    python experiments/chaos.py --kind interrupts --kills 100 --processes 1

A tiny U-Net is trained for 60 steps with a checkpoint every second step, again and again. Half of the kills wait until
a checkpoint is being written and strike within 50 ms, the others strike at any time after one. kill -9 hits all
processes, one after the other. After every kill the checkpoint that a resume takes is compared with the same step's of
the run left alone, every array bit for bit; so is the last one of each run. Exit status 1 if anything differs.

--kind interrupts: Ctrl-C instead of kill -9, half of the times while the run starts, every fourth time twice. What is
stopped ends with status 0, 130 or by the signal, without a traceback, and what it says is saved is there.

--kind readers: a run of 20 steps keeps one checkpoint, and is killed and started again while `sample` and `nll` read
it, each again and again. None may end with an error, and every picture and every number must be those of a checkpoint
of the run left alone.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from ddpm_jax import cli
from ddpm_jax.config.run import (
    Config,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    SampleConfig,
    ScheduleConfig,
    TrainConfig,
)
from ddpm_jax.runs import checkpoint
from ddpm_jax.train import loop

# Everything a state can hold: a learned variance, t by importance, several averages.
config = Config(
    data=DataConfig(flip=True),
    schedule=ScheduleConfig(num_timesteps=4, arguments={"beta_end": 0.5}),
    objective=ObjectiveConfig(
        loss="hybrid", variance="learned_range", timesteps="importance", timesteps_arguments={"history": 2}
    ),
    model=ModelConfig(channels=4, channel_multipliers=(1,), attention_resolutions=(), dropout=0.2, num_groups=2),
    optimizer=OptimizerConfig(warmup_steps=2, decay_steps=None, ema_decays=(0.9,), ema_sigmas=(0.1,)),
    sample=SampleConfig(num_steps=2, num_images=4),
    train=TrainConfig(
        num_steps=60, batch_size=8, log_every=10, checkpoint_every=2, sample_every=60, keep_checkpoints=3
    ),
)
DEVICES = 2
TRAIN = "from ddpm_jax.cli import main; main()"


@dataclasses.dataclass
class Tally:
    """What happened."""

    processes: int
    kills: int = 0
    while_saving: int = 0
    """Kills that left a half-written checkpoint."""
    before_the_first: int = 0
    """Kills before there was a checkpoint."""
    compared: int = 0
    damaged: int = 0
    """Resumes that found a damaged checkpoint under a final name, and took the one before it."""
    runs: int = 0
    """Runs that came to their end."""


Strike = Callable[[list[subprocess.Popen], Path, random.Random, Tally], None]


def start(
    workdir: Path, num_processes: int, keep: int, num_steps: int = config.train.num_steps
) -> list[subprocess.Popen]:
    """The processes of one run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    options = [__file__, "--workdir", workdir, "--train.keep-checkpoints", keep, "--train.num-steps", num_steps]
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}"}
    started = []
    for i in range(num_processes):
        several = ["--coordinator", coordinator, "--num-processes", num_processes, "--process-id", i]
        command = [sys.executable, "-c", TRAIN, "train", *options, *(several if num_processes > 1 else [])]
        with open(f"{workdir}.{i}.log", "a") as log:
            started.append(subprocess.Popen([*map(str, command)], env=environment, stdout=log, stderr=log))
    return started


def newest(workdir: Path) -> int:
    """The step of the newest checkpoint with its final name, -1 if there is none."""
    found = (workdir / "checkpoints").glob("*")
    return max((int(path.name) for path in found if path.name.isdecimal()), default=-1)


def is_saving(workdir: Path) -> bool:
    return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def kill_at_random(started: list[subprocess.Popen], workdir: Path, source: random.Random, tally: Tally) -> None:
    """kill -9 to all, once a save began or was completed, unless the run ends before that.

    Raises:
      RuntimeError: it ended with an error.
    """
    before, saving = newest(workdir), tally.kills % 2 == 0
    while not (is_saving(workdir) if saving else newest(workdir) > before):
        if all(process.poll() is not None for process in started):
            break
        time.sleep(0.001)
    time.sleep(source.uniform(0, 0.05 if saving else 1.0))
    for process in source.sample(started, len(started)):
        process.send_signal(signal.SIGKILL)
        time.sleep(source.choice([0, source.uniform(0, 0.02)]))
    statuses = [process.wait() for process in started]
    # One that hears of the loss of another before its own kill ends by itself.
    by_itself = {0, 2} if -signal.SIGKILL in statuses else {0}
    if not by_itself.union({-signal.SIGKILL}).issuperset(statuses):
        raise RuntimeError(f"a run ended with {statuses}; see {workdir}.*.log")
    if any(statuses):
        tally.kills += 1
        tally.while_saving += is_saving(workdir)
        tally.before_the_first += newest(workdir) < 0


def interrupt_at_random(started: list[subprocess.Popen], workdir: Path, source: random.Random, tally: Tally) -> None:
    """Ctrl-C to all, while they start or after a checkpoint; every fourth time once more soon after.

    Raises:
      AssertionError: what is said to be saved is not there.
      RuntimeError: a run ended with an error or with a traceback.
    """
    before, logs = newest(workdir), [Path(f"{workdir}.{i}.log") for i in range(len(started))]
    said_before = [len(path.read_text()) for path in logs]
    if tally.kills % 2 == 0:
        time.sleep(source.uniform(2, 10))  # Python itself starts before that, and has its own words for Ctrl-C
    else:
        while newest(workdir) <= before and any(process.poll() is None for process in started):
            time.sleep(0.001)
        time.sleep(source.uniform(0, 1))
    for _ in range(2 if tally.kills % 4 == 3 else 1):
        for process in started:
            process.send_signal(signal.SIGINT)
        time.sleep(source.uniform(0, 0.3))
    statuses = {process.wait() for process in started}
    said = [path.read_text()[length:] for path, length in zip(logs, said_before, strict=True)]
    wrong = statuses - {0, 130, -signal.SIGINT} - ({2} if len(started) > 1 else set())
    if wrong or any("Traceback" in text or "Exception ignored" in text for text in said):
        raise RuntimeError(f"a run ended with {statuses} or a traceback; see {workdir}.*.log")
    for step in re.findall(r"stopped after (\d+) steps", said[0]):
        assert newest(workdir) == int(step), f"step {step} is not saved, but {newest(workdir)}"
    tally.kills += 1
    tally.before_the_first += newest(workdir) < 0


def arrays(workdir: Path, run: loop.Run) -> tuple[int, dict[str, np.ndarray], list[str]]:
    """Of the checkpoint that a resume takes: (step, its arrays, what was said of damaged ones); nothing is moved."""
    said: list[str] = []
    found, step = {}, -1
    for item, template in checkpoint.items_of(run.template()).items():
        with checkpoint.checkpoints(workdir) as saved:
            tree, step = saved.restore_item_and_step(item, template, said.append)
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        found |= {item + jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return step, found, said


def reference(workdir: Path, num_processes: int, run: loop.Run) -> dict[int, dict[str, np.ndarray]]:
    """{step: arrays} of a run left alone."""
    statuses = [process.wait() for process in start(workdir, num_processes, config.train.num_steps)]
    if any(statuses):
        raise RuntimeError(f"the run left alone ended with {statuses}; see {workdir}.*.log")
    found = {}
    while (step := newest(workdir)) >= 0:
        found[step] = arrays(workdir, run)[1]
        shutil.rmtree(workdir / "checkpoints" / str(step))
    return found


def campaign(folder: Path, num_processes: int, kills: int, seed: int, strike: Strike = kill_at_random) -> Tally:
    """Kill runs so many times, and compare; the last one comes to its end.

    Raises:
      AssertionError: an array differs.
      RuntimeError: a run ended with an error.
    """
    source, tally, workdir = random.Random(seed), Tally(num_processes), folder / "killed"
    run = loop.prepare(config, jax.local_devices()[:1])
    expected = reference(folder / "alone", num_processes, run)
    last = config.train.num_steps
    while tally.kills < kills or newest(workdir) < last:
        if newest(workdir) == last:
            shutil.rmtree(workdir)
        started = start(workdir, num_processes, config.train.keep_checkpoints)
        if tally.kills < kills:
            strike(started, workdir, source, tally)
        elif any([process.wait() for process in started]):
            raise RuntimeError(f"a run ended with an error; see {workdir}.*.log")
        if newest(workdir) >= 0:
            compare(workdir, run, expected, tally)
        tally.runs += newest(workdir) == last
        print(json.dumps(dataclasses.asdict(tally)), flush=True)
    return tally


def compare(workdir: Path, run: loop.Run, expected: dict[int, dict[str, np.ndarray]], tally: Tally) -> None:
    """The checkpoint that a resume takes with that of the run left alone."""
    step, found, said = arrays(workdir, run)
    if step % config.train.checkpoint_every:
        return  # where it was interrupted: what follows from it is compared
    assert found.keys() == expected[step].keys()
    for name, array in found.items():
        assert array.tobytes() == expected[step][name].tobytes(), f"{name} of step {step} differs"
    tally.compared += 1
    tally.damaged += len(said) > 0


# ------------------------------------------------------------------------------------------------------------ readers

# One process for all calls of a command: what is tried is reading, not importing.
READ = """
import itertools, pathlib, sys
from ddpm_jax import cli
command, run, out, end = sys.argv[1:]
for i in itertools.count():
    if pathlib.Path(end).exists():
        break
    place = f"{out}/{i}.png" if command == "sample" else f"{out}/{i}"
    cli.main([command, run, "-n", "2", "--num-steps", "2", "--out", place])
"""
FEW = 20  # steps: their pictures and numbers are computed beforehand
AGAIN = "went away while it was read: looking again"


@dataclasses.dataclass
class Read(Tally):
    """What happened beside the readers."""

    pictures: int = 0
    numbers: int = 0
    """Of calls of nll."""
    again: int = 0
    """Checkpoints that went away while they were read."""


def results(folder: Path) -> Iterator[bytes | str]:
    """What the calls of both commands have left there: pictures, and bits/dim as JSON."""
    for path in folder.rglob("*.png"):
        yield path.read_bytes()
    for path in folder.rglob("summary.json"):
        yield json.dumps(json.loads(path.read_text())["bits_per_dim"])


def expected_results(folder: Path) -> set[bytes | str]:
    """Of every checkpoint of a run left alone, each in a directory of its own."""
    alone = folder / "alone"
    if any(process.wait() for process in start(alone, 1, FEW, FEW)):
        raise RuntimeError(f"the run left alone ended with an error; see {alone}.*.log")
    for path in (alone / "checkpoints").iterdir():
        run = folder / "steps" / path.name
        (run / "checkpoints").mkdir(parents=True)
        shutil.copy(alone / "config.json", run)
        path.rename(run / "checkpoints" / path.name)
        for command, out in (("sample", "a.png"), ("nll", "nll")):
            with contextlib.redirect_stdout(io.StringIO()):
                cli.main([command, str(run), "-n", "2", "--num-steps", "2", "--out", str(run / out)])
    return set(results(folder / "steps"))


def reader(command: str, workdir: Path, out: Path, end: Path) -> subprocess.Popen:
    """A process that calls a command again and again until there is a file `end`."""
    with open(f"{out}.log", "w") as log:
        arguments = [command, *map(str, (workdir, out, end))]
        return subprocess.Popen([sys.executable, "-c", READ, *arguments], stdout=log, stderr=log)


def readers_campaign(folder: Path, kills: int, seed: int) -> Read:
    """Kill a run that keeps one checkpoint so many times while both commands read it, and compare what they give.

    Raises:
      AssertionError: a picture or a number is that of no checkpoint.
      RuntimeError: a run or a reader ended with an error.
    """
    source, tally, expected = random.Random(seed), Read(1), expected_results(folder)
    while tally.kills < kills:
        workdir, home = folder / f"run_{tally.runs}", folder / f"read_{tally.runs}"
        home.mkdir()
        started = start(workdir, 1, 1, FEW)
        while newest(workdir) < 0 and started[0].poll() is None:
            time.sleep(0.01)
        readers = [reader(command, workdir, home / command, home / "end") for command in ("sample", "nll")]
        while newest(workdir) < FEW and tally.kills < kills:
            kill_at_random(started, workdir, source, tally)
            started = start(workdir, 1, 1, FEW)
            print(json.dumps(dataclasses.asdict(tally)), flush=True)
        failed = any([process.wait() for process in started])
        (home / "end").touch()
        logs = [(home / f"{command}.log") for command in ("sample", "nll")]
        if failed or any([process.wait() for process in readers]):
            raise RuntimeError(f"a run or a reader ended with an error; see {workdir}.*.log, {logs}")
        found = list(results(home))
        assert set(found) <= expected, f"a result in {home} is that of no checkpoint"
        tally.pictures += sum(isinstance(result, bytes) for result in found)
        tally.numbers += sum(isinstance(result, str) for result in found)
        tally.again += sum(path.read_text().count(AGAIN) for path in logs)
        tally.runs += 1
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("runs", "interrupts", "readers"), default="runs", help="what is tried")
    parser.add_argument("--kills", type=int, default=200, help="in all, as many with each number of processes")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.kind == "readers":
        with tempfile.TemporaryDirectory() as folder:
            tally = readers_campaign(Path(folder), arguments.kills, arguments.seed)
        print(f"every picture and number is that of a checkpoint, no error; {json.dumps(vars(tally))}")
        return
    # A shell tells what it starts in the background to ignore Ctrl-C, and so would the trainings.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    strike = interrupt_at_random if arguments.kind == "interrupts" else kill_at_random
    for n in arguments.processes:
        with tempfile.TemporaryDirectory() as folder:
            tally = campaign(Path(folder), n, arguments.kills // len(arguments.processes), arguments.seed, strike)
        print(f"{n} process(es): every array bit for bit in {tally.compared} comparisons; {json.dumps(vars(tally))}")


if __name__ == "__main__":
    main()
