"""MNIST, 28x28, in a quarter of an hour on a laptop: L_simple on the linear schedule, to compare with mnist_hybrid.py.

Run:       ddpm-jax train experiments/mnist_simple.py --data.dir DIR     (DIR holds TFDS's mnist)
           ddpm-jax nll runs/mnist_simple -n 64
Needs:     2 CPU cores, 2 GiB, 10 minutes; the bound of 64 images 3 minutes of CPU time, of all 10,000 hours
Expect:    more bits/dim than mnist_hybrid.py: Nichol & Dhariwal 2021 (arXiv:2102.09672), table 2, on CIFAR-10 have 3.73
           for L_simple, linear, T = 1000 and 3.17 for L_hybrid, cosine, T = 4000 (see iddpm_cifar10.py)
Measured:  10.0 minutes with pictures. First 64 images of the test set: 2.276 ± 0.033 bits/dim, of which transitions
           1.258 and decoder 1.018; mnist_hybrid.py: 1.745 ± 0.036 (1.024 and 0.721), the paper's order.
           2 CPU cores (AMD EPYC), 24 GiB, Python 3.11, jax 0.10.2, flax 0.12.8, other jobs of low priority running.
"""

from dataclasses import replace
from pathlib import Path

from ddpm_jax.cli import load_experiment

base = load_experiment(Path(__file__).with_name("mnist.py"))
config = replace(
    base,
    optimizer=replace(base.optimizer, decay_steps=2200, ema_decay=0.995),
    train=replace(base.train, num_steps=2200, batch_size=32, checkpoint_every=500, sample_every=1100),
)
smoke = replace(
    config,
    model=replace(config.model, channels=8, num_res_blocks=1),
    train=replace(config.train, num_steps=2, batch_size=4),
    sample=replace(config.sample, num_steps=2, num_images=4),
)
