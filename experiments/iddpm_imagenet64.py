"""ImageNet 64x64, unconditional, Nichol & Dhariwal 2021 (arXiv:2102.09672), table 1 and appendix A: L_hybrid, or L_vlb.

Run:       ddpm-jax train experiments/iddpm_imagenet64.py --data.dir DIR                   (L_hybrid)
           ddpm-jax train experiments/iddpm_imagenet64.py --data.dir DIR --workdir runs/iddpm_imagenet64_vlb
               --objective.loss vlb --objective.timesteps importance                       (L_vlb)
           DIR holds TFDS's downsampled_imagenet/64x64. Then, for either:
           ddpm-jax nll runs/iddpm_imagenet64 --split validation
           ddpm-jax sample runs/iddpm_imagenet64 --sampler ddpm_learned_range --num-steps 250 -n 50000 --out samples.npz
Needs:     accelerators for the paper's 1,500,000 steps
Expect:    paper, table 1, bits/dim and FID:
               steps      T     schedule  loss      bits/dim  FID
               200,000    1000  linear    L_simple  3.99      32.5
               200,000    4000  linear    L_simple  3.77      31.3
               200,000    4000  linear    L_hybrid  3.66      32.2
               200,000    4000  cosine    L_simple  3.68      27.0
               200,000    4000  cosine    L_hybrid  3.62      28.0
               200,000    4000  cosine    L_vlb     3.57      56.7
               1,500,000  4000  cosine    L_hybrid  3.57      19.2
               1,500,000  4000  cosine    L_vlb     3.53      40.1
           3.53 was confirmed by a second source; the others are quoted from memory.
Measured:  not run yet

As the paper's released commands, but for one difference that iddpm_cifar10.py states, from which this differs in the
data, in the widths (1, 2, 3, 4), in having no dropout, and in its length.
"""

from dataclasses import replace
from pathlib import Path

from ddpm_jax.cli import load_experiment
from ddpm_jax.config.run import DataConfig

base = load_experiment(Path(__file__).with_name("iddpm_cifar10.py"))
config = replace(
    base,
    data=DataConfig(name="downsampled_imagenet/64x64"),
    model=replace(base.model, channel_multipliers=(1, 2, 3, 4), dropout=0.0),
    train=replace(base.train, num_steps=1_500_000),
)
smoke = replace(
    config,
    data=DataConfig(name="cifar10", image_size=64),
    model=replace(config.model, channels=32, num_res_blocks=1),
    train=replace(config.train, num_steps=2, batch_size=4),
    sample=replace(config.sample, num_steps=2, num_images=4),
)
