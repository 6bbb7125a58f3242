"""ImageNet 256x256 in latents, with classes, Peebles & Xie 2022 (arXiv:2212.09748): DiT-XL/2.

Run:       ddpm-jax train experiments/latent_imagenet256.py    (autoencoder_imagenet256.py makes the latents)
           ddpm-jax sample runs/latent_imagenet256 --sampler ddpm_learned_range --num-steps 250 --guidance-scale 1.5
Needs:     accelerators
Expect:    FID 9.62, with guidance 1.5 2.27 (paper: 7,000,000 steps, the autoencoder of Stable Diffusion; quoted
           from memory)
Measured:  not run yet

As the paper: T = 1000, linear, learned_range, width 1152, depth 28, 16 heads, patches of 2, batch 256, AdamW without
decay at 1e-4, EMA 0.9999, classes dropped 10 %. Differences: latents are encoded once and so not mirrored (with
--data.name imagenet2012 --data.flip True --data.encode-with runs/autoencoder_imagenet256 they are, at every step).
"""

from dataclasses import replace

from ddpm_jax.config.condition import ConditionConfig
from ddpm_jax.config.networks import DiTConfig
from ddpm_jax.config.run import Config, DataConfig, ObjectiveConfig, OptimizerConfig, SampleConfig, TrainConfig

config = Config(
    data=DataConfig(name="runs/autoencoder_imagenet256/latents"),
    condition=ConditionConfig(("class",), drop=0.1),
    model=DiTConfig(width=1152, depth=28, num_heads=16, patch_size=2),
    objective=ObjectiveConfig(loss="hybrid", variance="learned_range"),
    optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=0, decay_steps=None, clip_norm=None, ema_decay=0.9999),
    sample=SampleConfig(sampler="ddpm_learned_range", num_steps=250, num_images=16, clip=None),
    train=TrainConfig(num_steps=7_000_000, batch_size=256, log_every=100, checkpoint_every=5000, sample_every=50_000),
)
smoke = replace(
    config,
    data=DataConfig(),
    model=replace(config.model, width=32, depth=2, num_heads=2),
    train=replace(config.train, num_steps=2, batch_size=4),
    sample=replace(config.sample, num_steps=2, num_images=4),
)
