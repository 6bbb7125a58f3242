"""A small run as training leaves it, without the training."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.config.condition import ConditionConfig
from ddpm_jax.config.run import Config, ModelConfig, SampleConfig, ScheduleConfig, TrainConfig
from ddpm_jax.runs import checkpoint
from ddpm_jax.train import loop


def small_run(
    home: Path, sample: SampleConfig, num_steps: int = 1, condition: ConditionConfig | None = None, **model: Any
) -> Path:
    """home/run, of 20 pictures in an array file, with their classes if it is told these, after its last step; its
    average says something.

    The parameters are those it began with, so that what reads them instead of the average shows.
    """
    images = np.random.RandomState(0).randint(0, 256, (20, 8, 8, 1)).astype(np.uint8)
    pictures = home / "pictures.npy"
    if condition is not None and "class" in condition.names:
        np.savez(pictures := home / "pictures.npz", images=images, labels=np.arange(20) % 3)
    else:
        np.save(pictures, images)
    config = Config(
        data=dataclasses.replace(Config().data, name=str(pictures)),
        schedule=ScheduleConfig("linear", 25, {"beta_end": 0.2}),
        model=ModelConfig(channels=4, channel_multipliers=(1,), attention_resolutions=(), num_groups=2, **model),
        condition=condition or ConditionConfig(),
        sample=sample,
        train=TrainConfig(num_steps=num_steps, batch_size=8),
    )
    with jax.numpy_dtype_promotion("standard"):
        run = loop.prepare(config)
        before = jax.jit(run.init)()
        average = jax.tree.map(lambda p: p + 0.1 * jnp.sin(jnp.arange(p.size)).reshape(p.shape), before.params)
        checkpoint.open_run(home / "run", checkpoint.RunInfo(config, (8, 8, 1), 20, classes=run.info.classes))
        with checkpoint.checkpoints(home / "run") as saved:
            saved.save(dataclasses.replace(before, step=jnp.int32(num_steps), ema_params=average))
    return home / "run"
