"""MNIST, 28x28, with the loss and the schedule of Ho et al. 2020 (arXiv:2006.11239).

Run:       ddpm-jax train experiments/mnist.py --data.dir DIR      (DIR holds TFDS's mnist; without it TFDS downloads)
Needs:     MEASURED
Expect:    no paper
Measured:  MEASURED
"""

from dataclasses import replace

from ddpm_jax.train.config import Config, DataConfig, ModelConfig, OptimizerConfig, SampleConfig, TrainConfig

config = Config(
    data=DataConfig(name="mnist"),
    # 28 halves twice: 28, 14, 7.
    model=ModelConfig(
        channels=32, channel_multipliers=(1, 2, 2), num_res_blocks=2, attention_resolutions=(14,), dropout=0.0
    ),
    optimizer=OptimizerConfig(learning_rate=4e-4, warmup_steps=500, decay_steps=None, ema_decay=0.999),
    sample=SampleConfig(num_images=36),
    train=TrainConfig(num_steps=20_000, batch_size=64, checkpoint_every=1000, sample_every=1000),
)
smoke = replace(
    config,
    model=replace(config.model, channels=8, num_res_blocks=1),
    train=replace(config.train, num_steps=2, batch_size=4),
    sample=replace(config.sample, num_steps=2, num_images=4),
)
