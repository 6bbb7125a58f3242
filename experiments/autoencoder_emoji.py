"""The first stage of latent diffusion on emoji of 64 x 64, 4 times smaller, with a perceptual and an adversarial loss.

Run:       ddpm-jax train experiments/autoencoder_emoji.py --data.name fluent_64.npz
           ddpm-jax encode runs/autoencoder_emoji
           ddpm-jax train experiments/latent_emoji.py --data.name runs/autoencoder_emoji/latents
           ddpm-jax sample runs/latent_emoji
           fluent_64.npz: `images` uint8 [3139, 64, 64, 3], of the npm package @iconify-json/fluent-emoji-flat 1.2.6
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
    data=DataConfig(name="fluent_64.npz"),
    model=KLConfig(channels=16, channel_multipliers=(1, 2, 2), num_res_blocks=1, num_groups=8, latent_channels=4),
    reconstruction=ReconstructionConfig(perceptual="efficientnet", perceptual_weight=0.02),
    adversary=AdversaryConfig(loss="hinge", start=800, channels=16, num_layers=2),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=50, decay_steps=1200, ema_decay=0.99),
    sample=SampleConfig(num_images=32),
    train=TrainConfig(num_steps=1200, batch_size=16, checkpoint_every=400, sample_every=400),
)
smoke = replace(
    config,
    data=DataConfig(),
    model=replace(config.model, channels=8, channel_multipliers=(1, 2), num_groups=4),
    reconstruction=ReconstructionConfig(),
    adversary=AdversaryConfig(loss="hinge", channels=4, num_layers=1),
    train=replace(config.train, num_steps=2, batch_size=4),
    sample=replace(config.sample, num_images=4),
)
