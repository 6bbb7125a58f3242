"""Kill a run at random moments, and start it again, until it ends: are its bits those of a run left alone?

    python experiments/chaos.py --kills 200 --processes 1 2

A tiny U-Net is trained for 60 steps with a checkpoint every second step, again and again. Half of the kills wait until
a checkpoint is being written and strike within 50 ms, the others strike at any time after one. kill -9 hits all
processes, one after the other. After every kill the checkpoint that a resume takes is compared with the same step's of
the run left alone, every array bit for bit; so is the last one of each run. Exit status 1 if anything differs.
"""

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

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


def start(workdir: Path, num_processes: int, keep: int) -> list[subprocess.Popen]:
    """The processes of one run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    options = [__file__, "--workdir", workdir, "--train.keep-checkpoints", keep]
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
    if any(status not in (0, -signal.SIGKILL) for status in statuses):
        raise RuntimeError(f"a run ended with {statuses}; see {workdir}.*.log")
    if any(statuses):
        tally.kills += 1
        tally.while_saving += is_saving(workdir)
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


def campaign(folder: Path, num_processes: int, kills: int, seed: int) -> Tally:
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
            kill_at_random(started, workdir, source, tally)
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
    assert found.keys() == expected[step].keys()
    for name, array in found.items():
        assert array.tobytes() == expected[step][name].tobytes(), f"{name} of step {step} differs"
    tally.compared += 1
    tally.damaged += len(said) > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="in all, as many with each number of processes")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for n in arguments.processes:
        with tempfile.TemporaryDirectory() as folder:
            tally = campaign(Path(folder), n, arguments.kills // len(arguments.processes), arguments.seed)
        print(f"{n} process(es): every array bit for bit in {tally.compared} comparisons; {json.dumps(vars(tally))}")


if __name__ == "__main__":
    main()
