"""The first stage of latent diffusion on CIFAR-10, 2 times smaller, with a perceptual and an adversarial loss.

Run:       ddpm-jax train experiments/autoencoder_cifar10.py --data.dir DIR   (DIR holds TFDS's cifar10)
           ddpm-jax encode runs/autoencoder_cifar10 --data.dir DIR
           ddpm-jax train experiments/latent_cifar10.py
           ddpm-jax sample runs/latent_cifar10
Needs:     2 CPU cores, 4 GiB; the extra eval
Expect:    no paper
Measured:  not run yet
"""

from dataclasses import replace

from ddpm_jax.config.first_stage import AdversaryConfig, ReconstructionConfig
from ddpm_jax.config.networks import KLConfig
from ddpm_jax.config.run import Config, DataConfig, OptimizerConfig, SampleConfig, TrainConfig

config = Config(
    task="autoencoder",
    data=DataConfig(name="cifar10", flip=True),
    model=KLConfig(channels=32, channel_multipliers=(1, 2), num_res_blocks=1, num_groups=8, latent_channels=4),
    reconstruction=ReconstructionConfig(perceptual="efficientnet", perceptual_weight=0.02),
    adversary=AdversaryConfig(loss="hinge", start=2000, channels=32, num_layers=2),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, decay_steps=3000, ema_decay=0.995),
    sample=SampleConfig(num_images=32),
    train=TrainConfig(num_steps=3000, batch_size=32, checkpoint_every=1000, sample_every=1000),
)
smoke = replace(
    config,
    model=replace(config.model, channels=8, num_groups=4),
    reconstruction=ReconstructionConfig(),
    adversary=AdversaryConfig(loss="hinge", channels=4, num_layers=1),
    train=replace(config.train, num_steps=2, batch_size=4),
    sample=replace(config.sample, num_images=4),
)
