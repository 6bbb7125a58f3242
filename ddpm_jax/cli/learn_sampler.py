"""ddpm-jax learn-sampler"""

import contextlib
import shlex

from ddpm_jax.cli.parsing import parse
from ddpm_jax.distil import command
from ddpm_jax.host.bars import LearnBar


def learn_sampler(argv: list[str]) -> None:
    """Fit the numbers and times of a table to a network, and say how to draw with it."""
    arguments = parse(command.LearnArguments, argv, "learn-sampler")
    with contextlib.closing(LearnBar()) as bar:
        path, after, before = command.run(arguments, bar)
    print(f"held-out error {after.geometric_mean:.4f} (rms {after.rms:.4f}), "
          f"of the sampler it began with {before.geometric_mean:.4f} (rms {before.rms:.4f})")  # fmt: skip
    print(f"pictures: ddpm-jax sample {shlex.quote(arguments.source)} --sampler {shlex.quote(str(path))}")
