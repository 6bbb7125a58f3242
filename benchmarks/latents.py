"""Steps a second of training in latents: encoded once before (`ddpm-jax encode`), beside encoded at every step.

Run:       python -m benchmarks.latents [--images 256] [--size 64] [--steps 60] [--rounds 3]
           The networks are those of experiments/autoencoder_emoji.py and latent_emoji.py, the pictures are noise. The
           autoencoder is trained for one step: what it costs does not depend on what it has learned.
Prints:    milliseconds a step of both, in turn in each round: medians over the steps after the tenth; and their ratio.
Measured:  docs/latents.md
"""

import argparse
import contextlib
import io
import runpy
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np

from ddpm_jax.cli.encode import encode
from ddpm_jax.config.first_stage import AdversaryConfig, ReconstructionConfig
from ddpm_jax.config.run import Config
from ddpm_jax.train import loop

EXPERIMENTS, FIRST = Path(__file__).parent.parent / "experiments", 10


class Clock:
    """A report that says how long each step took."""

    def __init__(self):
        self.times: list[float] = []

    def start(self, first_step: int, num_steps: int) -> None: ...
    def metrics(self, step: int, values: dict[str, float]) -> None: ...
    def say(self, message: str) -> None: ...
    def step(self, step: int) -> None:
        self.times.append(time.perf_counter())


def recipe(name: str) -> Config:
    return runpy.run_path(str(EXPERIMENTS / f"{name}.py"))["config"]


def trained(config: Config, workdir: Path, num_steps: int, **data: Any) -> list[float]:
    """Seconds of each step after the first ones."""
    steps = replace(config.train, num_steps=num_steps, checkpoint_every=num_steps, sample_every=num_steps)
    clock = Clock()
    drawn = {} if config.task == "autoencoder" else {"num_steps": 2}
    few = replace(config.sample, num_images=4, **drawn)  # what is drawn at the end is not measured
    optimizer = replace(config.optimizer, warmup_steps=0, decay_steps=num_steps)
    given = {"train": steps, "sample": few, "data": replace(config.data, **data), "optimizer": optimizer}
    loop.fit(replace(config, **given), workdir, clock)
    return list(np.diff(clock.times)[FIRST:])


def main(images: int, size: int, steps: int, rounds: int) -> None:
    """Both, in turn."""
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {size} x {size} pixels")
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        pictures = np.random.RandomState(0).randint(0, 256, (images, size, size, 3)).astype(np.uint8)
        np.save(place / "pictures.npy", pictures)
        first = replace(recipe("autoencoder_emoji"), reconstruction=ReconstructionConfig(), adversary=AdversaryConfig())
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            trained(first, place / "first", 1, name=str(place / "pictures.npy"))
            encode([str(place / "first"), "--out", str(place / "latents")])
        forms = {
            "encoded before": {"name": str(place / "latents")},
            "at every step": {"name": str(place / "pictures.npy"), "encode_with": str(place / "first")},
        }
        found: dict[str, list[float]] = {form: [] for form in forms}
        for turn in range(rounds):
            for i, (form, data) in enumerate(forms.items()):
                seconds = median(trained(recipe("latent_emoji"), place / f"run{turn}{i}", steps, **data))
                found[form].append(seconds)
                print(f"{form}: {1e3 * seconds:.1f} ms a step", flush=True)
        before, every = (median(numbers) for numbers in found.values())
        print(f"encoded before makes {every / before:.2f} times the steps a second")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 256), ("size", 64), ("steps", 60), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    main(given.images, given.size, given.steps, given.rounds)
