"""ImageNet 256x256, unconditional, Dhariwal & Nichol 2021 (arXiv:2105.05233), section 3 and appendix I: ADM.

Run:       ddpm-jax train experiments/adm_imagenet256.py --data.dir DIR    (DIR holds TFDS's imagenet2012)
           ddpm-jax sample runs/adm_imagenet256 --sampler ddpm_learned_range --num-steps 250 -n 50000 --out samples.npz
Needs:     accelerators; parameters, average and optimizer take 8.2 GiB, of each or shared by fsdp (docs/plan.md)
Expect:    FID 26.21, sFID 6.35 (paper, table 4: 2,000,000 steps, 250 sampling steps, no guidance; quoted from memory)
Measured:  not run yet

As the paper's released commands: T = 1000, linear, learned_range, the network's 552,814,086 parameters, no dropout,
batch 256, Adam at 1e-4 without warm-up or clipping, EMA 0.9999. Differences: float32 (theirs: float16), and the
network starts as Ho et al.'s do.
"""

from dataclasses import replace

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
    data=DataConfig(name="imagenet2012", image_size=256),
    model=ModelConfig(
        channels=256,
        channel_multipliers=(1, 1, 2, 2, 4, 4),
        num_res_blocks=2,
        attention_resolutions=(32, 16, 8),
        num_groups=32,
        norm_eps=1e-5,
        num_head_channels=64,
        scale_shift_norm=True,
        downsample="resblock",
        downsample_padding=1,
        upsample="resblock",
        time_cosine_first=True,
        time_endpoint=False,
    ),
    objective=ObjectiveConfig(loss="hybrid", variance="learned_range"),
    optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=0, decay_steps=None, clip_norm=None, ema_decay=0.9999),
    sample=SampleConfig(sampler="ddpm_learned_range", num_steps=250, num_images=16),
    train=TrainConfig(num_steps=2_000_000, batch_size=256, log_every=100, checkpoint_every=5000, sample_every=10_000),
)
smoke = replace(
    config,
    data=DataConfig(name="cifar10", image_size=64),
    model=replace(config.model, channels=32, num_res_blocks=1, num_head_channels=32),
    train=replace(config.train, num_steps=2, batch_size=4),
    sample=replace(config.sample, num_steps=2, num_images=4),
)
