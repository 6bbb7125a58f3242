"""One of several processes of a test: python -m tests.host.one_process WORKDIR RECORD COORDINATOR N ID [OPTION ...].

Trains tests.host.test_processes.CONFIG with the options of `ddpm-jax train`, and writes into RECORD, if it is not "-",
every example (x_0, t, eps) that a loss was computed of.
"""

import sys

import jax
import numpy as np

from ddpm_jax import build, cli
from ddpm_jax.cli import train
from tests.host import test_processes

workdir, record, coordinator, n, i, *options = sys.argv[1:]
examples = []


def recorded(make):
    """The objectives that `make` makes, watched."""

    def make_objective(*args):
        objective = make(*args)

        def watched(model_fn, x_0, t, eps):
            jax.debug.callback(lambda *seen: examples.extend(zip(*map(np.asarray, seen), strict=True)), x_0, t, eps)
            return objective(model_fn, x_0, t, eps)

        return watched

    return make_objective


if record != "-":
    build.make_objective = recorded(build.make_objective)
train.Config = lambda: test_processes.CONFIG
several = [] if n == "1" else ["--coordinator", coordinator, "--num-processes", n, "--process-id", i]
cli.main(["train", "--workdir", workdir, *several, *options])
if record != "-":
    jax.effects_barrier()
    x_0, t, eps = (np.stack(values) for values in zip(*examples, strict=True))
    np.savez(record, x_0=x_0, t=t, eps=eps)
