"""scikit-learn's 1797 handwritten digits, 8x8: the embedded default, written down as an experiment.

Run:       ddpm-jax train experiments/digits.py            (the same as plain `ddpm-jax train`)
Needs:     MEASURED
Expect:    no paper
Measured:  MEASURED
"""

from dataclasses import replace

from ddpm_jax.train.config import Config

config = Config()
smoke = replace(
    config,
    train=replace(config.train, num_steps=2, batch_size=8),
    sample=replace(config.sample, num_steps=2, num_images=4),
)
