"""Diffusion in the latents of CIFAR-10, 16 x 16 x 4, told which class: see autoencoder_cifar10.py, which makes them.

Run:       ddpm-jax train experiments/latent_cifar10.py
           ddpm-jax sample runs/latent_cifar10 --guidance-scale 2
Needs:     2 CPU cores, 2 GiB
Expect:    no paper
Measured:  not run yet
"""

from dataclasses import replace

from ddpm_jax.config.condition import ConditionConfig
from ddpm_jax.config.run import (
    Config,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    SampleConfig,
    TrainConfig,
)

config = Config(
    data=DataConfig(name="runs/autoencoder_cifar10/latents"),
    condition=ConditionConfig(("class",)),
    model=ModelConfig(
        channels=32, channel_multipliers=(1, 2, 2), num_res_blocks=1, attention_resolutions=(8,), num_groups=8
    ),
    objective=ObjectiveConfig(prediction="v"),
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100, decay_steps=6000, ema_decay=0.995),
    sample=SampleConfig(num_images=40, clip=None),
    train=TrainConfig(num_steps=6000, batch_size=32, checkpoint_every=1000, sample_every=1000),
)
smoke = replace(
    config,
    data=DataConfig(),
    model=replace(config.model, channels=8, channel_multipliers=(1, 2), attention_resolutions=(), num_groups=4),
    train=replace(config.train, num_steps=2, batch_size=4),
    sample=replace(config.sample, num_steps=2, num_images=4),
)
