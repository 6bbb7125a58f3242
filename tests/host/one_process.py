"""One of several processes of a test: python -m tests.host.one_process WORKDIR TASK RECORD COORDINATOR N ID [OPTION]*.

Trains a task of tests.runs.test_checkpoint.TASKS as tests.host.test_processes.CONFIG says, with the options of
`ddpm-jax train`. Writes into RECORD, if it is not "-", every example (x_0, t, eps) that diffusion computed a loss of.
"""

import functools
import sys
from pathlib import Path

import jax
import numpy as np

from ddpm_jax import build, cli
from ddpm_jax.train import loop
from tests.runs.test_checkpoint import TASKS

workdir, task, record, coordinator, n, i, *options = sys.argv[1:]
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
loop.fit = functools.partial(loop.fit, make_task=TASKS[task])
several = [] if n == "1" else ["--coordinator", coordinator, "--num-processes", n, "--process-id", i]
experiment = Path(__file__).with_name("experiment.py")
cli.main(["train", str(experiment), "--workdir", workdir, *several, *options])
if record != "-":
    jax.effects_barrier()
    x_0, t, eps = (np.stack(values) for values in zip(*examples, strict=True))
    np.savez(record, x_0=x_0, t=t, eps=eps)
