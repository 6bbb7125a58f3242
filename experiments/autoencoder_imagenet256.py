"""The first stage of latent diffusion on ImageNet 256x256, f = 8, Rombach et al. 2022 (arXiv:2112.10752), appendix G.

Run:       ddpm-jax train experiments/autoencoder_imagenet256.py --data.dir DIR --reconstruction.weights vgg16.pth
           (DIR holds TFDS's imagenet2012, vgg16.pth torchvision's weights)
           ddpm-jax encode runs/autoencoder_imagenet256 --data.dir DIR
           ddpm-jax train experiments/latent_imagenet256.py
Needs:     accelerators; the package lpips for the heads of the perceptual distance
Expect:    the paper's KL f8 was trained on OpenImages: R-FID 0.90, PSNR 24.19 (table 8; quoted from memory)
Measured:  not run yet

Widths, losses and weights are those of its kl-f8 model, 83,653,863 parameters: L1, LPIPS, hinge from step 50,001 on,
weight 0.5, KL weight 1e-6, learning rate 4.5e-6 for each image of a batch. Differences: float32 means instead of sums
(docs/latents.md), and a discriminator whose norms are of one image.
"""

from dataclasses import replace

from ddpm_jax.config.first_stage import AdversaryConfig, ReconstructionConfig
from ddpm_jax.config.networks import KLConfig
from ddpm_jax.config.run import Config, DataConfig, OptimizerConfig, SampleConfig, TrainConfig

BATCH = 96

config = Config(
    task="autoencoder",
    data=DataConfig(name="imagenet2012", image_size=256, flip=True),
    model=KLConfig(channels=128, channel_multipliers=(1, 2, 4, 4), num_res_blocks=2, num_groups=32, latent_channels=4),
    reconstruction=ReconstructionConfig(perceptual="vgg", weights="vgg16.pth"),
    adversary=AdversaryConfig(loss="hinge", start=50_001, channels=64, num_layers=3),
    optimizer=OptimizerConfig(learning_rate=4.5e-6 * BATCH, warmup_steps=0, decay_steps=None, clip_norm=None,
                              ema_decay=0.999),
    sample=SampleConfig(num_images=16),
    train=TrainConfig(num_steps=250_000, batch_size=BATCH, log_every=100, checkpoint_every=5000, sample_every=10_000),
)  # fmt: skip
smoke = replace(
    config,
    data=DataConfig(name="cifar10"),
    model=replace(config.model, channels=8, channel_multipliers=(1, 2), num_res_blocks=1, num_groups=4),
    reconstruction=ReconstructionConfig(),
    adversary=AdversaryConfig(loss="hinge", channels=4, num_layers=1),
    train=replace(config.train, num_steps=2, batch_size=4),
    sample=replace(config.sample, num_images=4),
)
