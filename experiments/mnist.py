"""MNIST, 28x28, with the loss and the schedule of Ho et al. 2020 (arXiv:2006.11239).

Run:       ddpm-jax train experiments/mnist.py --data.dir DIR      (DIR holds TFDS's mnist; without it TFDS downloads)
Needs:     2 CPU cores, 2 GiB; 500 steps in 5 minutes
Expect:    no paper
Measured:  500 steps (--train.num-steps 500): 327 s with pictures, 109 images/s, 1.4 GiB, loss 0.037.
           2 CPU cores (AMD EPYC), 24 GiB, Python 3.11, jax 0.10.2, flax 0.12.8, other jobs running.
           The whole recipe: not run yet
"""

from dataclasses import replace

from ddpm_jax.config.run import Config, DataConfig, ModelConfig, OptimizerConfig, SampleConfig, TrainConfig

config = Config(
    data=DataConfig(name="mnist"),
    # 28 halves twice: 28, 14, 7.
    model=ModelConfig(
        channels=16, channel_multipliers=(1, 2, 4), num_res_blocks=1, attention_resolutions=(7,), num_groups=8
    ),
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100, decay_steps=10_000, ema_decay=0.999),
    sample=SampleConfig(num_images=36),
    train=TrainConfig(num_steps=10_000, batch_size=64, checkpoint_every=1000, sample_every=500),
)
smoke = replace(
    config,
    model=replace(config.model, channels=8, num_res_blocks=1),
    train=replace(config.train, num_steps=2, batch_size=4),
    sample=replace(config.sample, num_steps=2, num_images=4),
)
