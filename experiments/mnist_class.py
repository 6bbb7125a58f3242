"""MNIST, told which digit, with a network small enough for a laptop.

Run:       ddpm-jax train experiments/mnist_class.py --data.dir DIR   (DIR holds TFDS's mnist; else TFDS downloads)
           python experiments/class_report.py runs/mnist_class
Needs:     2 CPU cores, 2 GiB
Expect:    no paper
Measured:  not run yet
"""

from dataclasses import replace

from ddpm_jax.config.condition import ConditionConfig
from ddpm_jax.config.run import Config, DataConfig, ModelConfig, OptimizerConfig, SampleConfig, TrainConfig

config = Config(
    data=DataConfig(name="mnist"),
    condition=ConditionConfig(("class",)),
    model=ModelConfig(
        channels=16, channel_multipliers=(1, 2, 2), num_res_blocks=1, attention_resolutions=(7,), num_groups=8
    ),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=100, decay_steps=1800, ema_decay=0.995),
    sample=SampleConfig(num_images=40),
    train=TrainConfig(num_steps=1800, batch_size=64, checkpoint_every=600, sample_every=600),
)
smoke = replace(
    config,
    model=replace(config.model, channels=8, num_res_blocks=1),
    train=replace(config.train, num_steps=2, batch_size=4),
    sample=replace(config.sample, num_steps=2, num_images=4),
)
