"""scikit-learn's 1797 handwritten digits, 8x8: the embedded default, written down as an experiment.

Run:       ddpm-jax train experiments/digits.py            (the same as plain `ddpm-jax train`)
Needs:     2 CPU cores, 1.1 GiB, about 3 minutes
Expect:    no paper
Measured:  2 CPU cores (AMD EPYC), 24 GiB, Python 3.11, jax 0.10.2, flax 0.12.8, other jobs running:
           190 s from the command to the last picture, the first pictures 32 s after the run's directory was made;
           30 ms a step; samples: see digits_report.py
"""

from dataclasses import replace

from ddpm_jax.config.run import Config

config = Config()
smoke = replace(
    config,
    train=replace(config.train, num_steps=2, batch_size=8),
    sample=replace(config.sample, num_steps=2, num_images=4),
)
