"""What the loops cost around the network: sampling N steps beside N forward calls, training beside its jitted step.

Run:       python experiments/bench_loop.py [rounds]
Needs:     any device; on 2 CPU cores about 3 minutes; the package installed or on PYTHONPATH
Expect:    sampling within 2 % of its forward calls, training within 5 % of its steps
Measured:  2 CPU cores (AMD EPYC), 24 GiB, Python 3.11, jax 0.10.2, flax 0.12.8, nothing else running; medians of 5:
           sampling / forward calls 0.991 (0.969 to 1.020); training loop / step 1.017 (0.878 to 1.052): the loop
           prepares the next batch while a step runs
"""

import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp

from ddpm_jax import samplers
from ddpm_jax.models import UNet, bind
from ddpm_jax.samplers.catalogue import make_table
from ddpm_jax.train import loop
from ddpm_jax.train.build import make_schedule
from ddpm_jax.train.config import Config, ScheduleConfig

NUM_STEPS = 5  # of the sampler


def seconds(job: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(job())
    return time.perf_counter() - start


def sampling_ratios(rounds: int) -> list[float]:
    """Time of one scan of NUM_STEPS steps over that of as many jitted forward calls; the CIFAR-10 network, batch 2."""
    model, shape = UNet(), (2, 32, 32, 3)
    x, t, key = jnp.zeros(shape), jnp.zeros(shape[0]), jax.random.key(0)
    params = jax.jit(model.init)(key, x, t)["params"]
    forward = jax.jit(lambda params, x, t: bind(model, params)(x, t))
    table = make_table("ddim", make_schedule(ScheduleConfig()), NUM_STEPS)
    draw = loop.make_draw(model, lambda model_fn: samplers.denoiser(model_fn, clip=1.0), table, shape)

    def calls() -> Any:
        y = x
        for _ in range(NUM_STEPS):
            y = forward(params, y, t)
        return y

    ratios = [seconds(lambda: draw(params, key)) / seconds(calls) for _ in range(rounds + 1)]
    return ratios[1:]


class Clock:
    """A report that notes when each step was handed over."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def start(self, first_step: int, num_steps: int) -> None: ...
    def metrics(self, step: int, values: dict[str, float]) -> None: ...
    def say(self, message: str) -> None: ...
    def step(self, step: int) -> None:
        self.times.append(time.perf_counter())


def training_ratios(rounds: int) -> list[float]:
    """Mean time of a step inside `fit` over that of train_step alone, on one batch; the digits network.

    Logging every 50 steps as by default; without the checkpoints and pictures, which cost what they cost.
    """
    num_steps = 100
    config = Config()
    config = replace(
        config,
        train=replace(config.train, num_steps=num_steps, checkpoint_every=10_000, sample_every=10_000),
        sample=replace(config.sample, num_images=1, num_steps=1),
    )
    ratios = []
    run = loop.prepare(config)
    state, batch = jax.jit(run.init)(), run.batch(0)
    for _ in range(2):  # its own result, sharded over the devices, compiles once more
        state, _ = run.train_step(state, batch)
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as directory:
            clock = Clock()
            loop.fit(config, Path(directory) / "run", clock)
        inside = (clock.times[-1] - clock.times[0]) / (num_steps - 1)  # the first step compiles
        start = time.perf_counter()
        for _ in range(num_steps):
            state, metrics = run.train_step(state, batch)
            jax.block_until_ready((state, metrics))
        ratios.append(inside / ((time.perf_counter() - start) / num_steps))
    return ratios


def main(rounds: str = "5") -> None:
    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__}, flax {flax.__version__}, {platform.machine()}, {os.cpu_count()} CPUs, {device}")
    for name, ratios in (
        (f"sampling {NUM_STEPS} steps / {NUM_STEPS} forward calls", sampling_ratios(int(rounds))),
        ("training loop / jitted step", training_ratios(int(rounds))),
    ):
        print(f"{name}: median {statistics.median(ratios):.3f} (min {min(ratios):.3f}, max {max(ratios):.3f})")


if __name__ == "__main__":
    main(*sys.argv[1:])
