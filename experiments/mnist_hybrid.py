"""MNIST, 28x28, in a quarter of an hour on a laptop: L_hybrid, cosine, learned variance; the rest as mnist_simple.py.

Run:       ddpm-jax train experiments/mnist_hybrid.py --data.dir DIR     (DIR holds TFDS's mnist)
           ddpm-jax nll runs/mnist_hybrid -n 64
Needs:     2 CPU cores, 2 GiB, 11 minutes
Expect:    fewer bits/dim than mnist_simple.py: see there
Measured:  10.6 minutes with pictures. First 64 images of the test set: 1.745 ± 0.036 bits/dim, of which transitions
           1.024 and decoder 0.721; mnist_simple.py has 2.276. The best 10 timesteps that nll finds would cost 1.64 in
           transitions, 10 evenly spread ones 3.45.
           2 CPU cores (AMD EPYC), 24 GiB, Python 3.11, jax 0.10.2, flax 0.12.8, other jobs of low priority running.
"""

from dataclasses import replace
from pathlib import Path

from ddpm_jax.cli import load_experiment
from ddpm_jax.config.run import ObjectiveConfig, ScheduleConfig

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
