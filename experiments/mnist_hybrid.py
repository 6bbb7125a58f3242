"""MNIST, 28x28, in a quarter of an hour on a laptop: L_hybrid, cosine, learned variance; the rest as mnist_simple.py.

Run:       ddpm-jax train experiments/mnist_hybrid.py --data.dir DIR     (DIR holds TFDS's mnist)
           ddpm-jax nll runs/mnist_hybrid --split test
Needs:     2 CPU cores, 2 GiB, about 11 minutes
Expect:    fewer bits/dim than mnist_simple.py: see there
Measured:  not run yet
"""

from dataclasses import replace
from pathlib import Path

from ddpm_jax.cli import load_experiment
from ddpm_jax.train.config import ObjectiveConfig, ScheduleConfig

base = load_experiment(Path(__file__).with_name("mnist_simple.py"))
config = replace(
    base,
    schedule=ScheduleConfig(name="cosine"),
    objective=ObjectiveConfig(loss="hybrid", variance="learned_range"),
)
smoke = replace(
    config,
    model=replace(config.model, channels=8, num_res_blocks=1),
    train=replace(config.train, num_steps=2, batch_size=4),
    sample=replace(config.sample, num_steps=2, num_images=4),
)
