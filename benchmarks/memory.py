"""Does the memory of a process grow? A training of 20,000 steps, and 200 calls of `ddpm-jax sample`, one after another.

Run:       python -m benchmarks.memory [--steps 20000] [--calls 200]
Prints:    resident memory and open files along the way, and how much both grow from the first line to the largest.
Measured:  docs/bench.md
"""

import argparse
import contextlib
import io
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax

from ddpm_jax.cli.sample import sample
from ddpm_jax.config.run import Config, ModelConfig, OptimizerConfig, SampleConfig
from ddpm_jax.train import loop

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> float:
    """MiB of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


class Table:
    """Lines of memory and files; the first one is what the others are compared with."""

    def __init__(self, unit: str):
        self._unit = unit
        self._memory, self._files = [], []

    def add(self, count: int) -> None:
        self._memory.append(resident())
        self._files.append(open_files())
        print(f"{count:>8,} {self._unit}  {self._memory[-1]:8.1f} MiB  {self._files[-1]} files", flush=True)

    def close(self) -> None:
        growth = max(self._memory) / self._memory[0] - 1
        print(f"at most {growth:.1%} and {max(self._files) - self._files[0]} files above the first line\n")


class Watch:
    """A report that fills a table every so many steps."""

    def __init__(self, table: Table, every: int):
        self._table, self._every = table, every

    def start(self, first_step: int, num_steps: int) -> None: ...
    def metrics(self, step: int, values: dict[str, float]) -> None: ...
    def say(self, message: str) -> None: ...
    def step(self, step: int) -> None:
        if step and step % self._every == 0:
            self._table.add(step)


def configuration(steps: int) -> Config:
    """Small, with a checkpoint and pictures every thousand steps as a long run has them."""
    config = Config()
    return replace(
        config,
        model=ModelConfig(channels=4, channel_multipliers=(1,), attention_resolutions=(), num_groups=2),
        optimizer=OptimizerConfig(ema_decays=(0.9,), ema_sigmas=(0.1,)),
        train=replace(config.train, num_steps=steps, batch_size=8, checkpoint_every=1000, sample_every=1000),
        sample=SampleConfig(num_images=4, num_steps=4),
    )


def silently(call: Callable[[], None]) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        call()


def main(steps: int, calls: int) -> None:
    """Both tables."""
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        table = Table("steps")
        loop.fit(configuration(steps), run, Watch(table, max(1, steps // 20)))
        table.close()
        table = Table("calls of sample")
        for call in range(calls):
            out = Path(directory) / f"{call}.npz"
            silently(lambda out=out: sample([str(run), "-n", "4", "--num-steps", "4", "--out", str(out)]))
            if (call + 1) % max(1, calls // 20) == 0:
                table.add(call + 1)
        table.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--calls", type=int, default=200)
    given = parser.parse_args()
    main(given.steps, given.calls)
