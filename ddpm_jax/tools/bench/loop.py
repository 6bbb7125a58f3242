"""What training costs around its steps: `fit` beside train_step alone, on one batch."""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax.config.run import Config, DataConfig, ModelConfig, SampleConfig, TrainConfig
from ddpm_jax.tools.bench.blocks import Block, Comparison, Missing
from ddpm_jax.tools.bench.settings import Say, Settings

NUM_STEPS = 100
NAMES = ("a step of the training loop", "the step alone")


class Clock:
    """A report that notes when each step was handed over."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def start(self, first_step: int, num_steps: int) -> None: ...
    def metrics(self, step: int, values: dict[str, float]) -> None: ...
    def say(self, message: str) -> None: ...
    def step(self, step: int) -> None:
        self.times.append(time.perf_counter())


def measure(settings: Settings, say: Say) -> list[Block]:
    """Seconds per step of both, round by round: logging as by default, without checkpoints and pictures."""
    try:
        from ddpm_jax.train import loop
    except ImportError as error:
        # The loop retries writes, draws pictures and plots: packages that a plain machine with JAX has not.
        return [Missing("Not measured", dict.fromkeys(NAMES, f"{error}"))]
    with tempfile.TemporaryDirectory() as directory:
        config = configuration(settings, Path(directory))
        run = loop.prepare(config)
        state, batch = jax.jit(run.init)(), run.batch(0)
        for _ in range(3):  # its own result, placed by the step, compiles once more
            state, _ = run.train_step(state, batch)
        seconds: dict[str, list[float]] = {name: [] for name in NAMES}
        for k in range(settings.rounds):
            say(f"loop: round {k + 1} of {settings.rounds}")
            seconds[NAMES[0]].append(in_the_loop(loop.fit, config, Path(directory) / f"run{k}"))
            start = time.perf_counter()
            for _ in range(NUM_STEPS):
                state, metrics = run.train_step(state, batch)
                jax.block_until_ready((state, metrics))
            seconds[NAMES[1]].append((time.perf_counter() - start) / NUM_STEPS)
    title = f"{NUM_STEPS} steps of training, {settings.network}, batch {settings.batch}, {settings.dtype}"
    note = "Mean of the steps after the first, which compiles; the loop prepares the next batch while a step runs."
    return [Comparison(title, NAMES[1], seconds, settings.batch, "image", note=note)]


def in_the_loop(fit: Callable[..., int], config: Config, workdir: Path) -> float:
    """Mean seconds from a step to the next."""
    clock = Clock()
    fit(config, workdir, clock)
    return (clock.times[-1] - clock.times[0]) / (len(clock.times) - 1)


def configuration(settings: Settings, directory: Path) -> Config:
    """A run of this network on random images in a file."""
    network = settings.ours
    images = np.random.default_rng(0).integers(0, 256, (2048, *network.image_shape), np.uint8)
    np.save(directory / "images.npy", images)
    names = {field.name for field in dataclasses.fields(ModelConfig)} - {"dtype"}
    values: dict[str, Any] = {name: getattr(network.model, name) for name in names} | {"dtype": settings.dtype}
    model = ModelConfig(**values)
    return replace(
        Config(),
        data=DataConfig(name=str(directory / "images.npy")),
        model=model,
        train=TrainConfig(
            num_steps=NUM_STEPS, batch_size=settings.batch, checkpoint_every=10**6, sample_every=10**6, log_every=50
        ),
        sample=SampleConfig(num_images=1, num_steps=1),
    )
