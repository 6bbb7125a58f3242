"""CIFAR-10, unconditional, Ho et al. 2020 (arXiv:2006.11239), section 4 and appendix B.

Run:       ddpm-jax train experiments/cifar10.py --data.dir DIR    (DIR holds TFDS's cifar10; without it TFDS downloads)
           ddpm-jax sample runs/cifar10 --sampler ddpm --num-steps 1000 -n 50000 --out samples.npz
Needs:     an accelerator for the paper's recipe; a few steps of batch 8 run anywhere, in 2.5 GiB
Expect:    FID 3.17, Inception score 9.46 (paper, table 1: 800,000 steps, 50,000 EMA samples, T = 1000, fixed_large)
Measured:  200 steps of batch 8 (--train.num-steps 200 --train.batch-size 8 --sample.num-images 16): 1670 s with
           pictures, 1.3 to 2 images/s, 2.5 GiB, loss 1.0 to 0.82 (warm-up of 5000 steps).
           2 CPU cores (AMD EPYC), 24 GiB, Python 3.11, jax 0.10.2, flax 0.12.8, other jobs running.
           The paper's recipe: not run yet
"""

from dataclasses import replace

from ddpm_jax.config.run import Config, DataConfig, ModelConfig, OptimizerConfig, SampleConfig, TrainConfig

config = Config(
    data=DataConfig(name="cifar10", flip=True),
    model=ModelConfig(
        channels=128,
        channel_multipliers=(1, 2, 2, 2),
        num_res_blocks=2,
        attention_resolutions=(16,),
        dropout=0.1,
        num_groups=32,
    ),
    optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=5000, decay_steps=None, ema_decay=0.9999),
    sample=SampleConfig(num_images=64),
    train=TrainConfig(num_steps=800_000, batch_size=128, log_every=100, checkpoint_every=5000, sample_every=5000),
)
smoke = replace(
    config,
    model=replace(config.model, channels=32, num_res_blocks=1),
    train=replace(config.train, num_steps=2, batch_size=4),
    sample=replace(config.sample, num_steps=2, num_images=4),
)
