"""What a run can train: one file a task, see `train.task`."""

from collections.abc import Callable

import jax

from ddpm_jax.config.run import Config
from ddpm_jax.data import Source
from ddpm_jax.host.storage import Say
from ddpm_jax.train.task import Task
from ddpm_jax.train.tasks import autoencoder, classifier, diffusion
from ddpm_jax.train.tasks.clean import shape_of as shape_of

# make(config, say) checks what it can before the data is read, which takes time, and returns a function
# (config resolved for the data, data, key of the run) -> task.
OfData = Callable[[Config, Source, jax.Array], Task]
MakeTask = Callable[[Config, Say], OfData]

TASKS: dict[str, MakeTask] = {
    "diffusion": diffusion.make,
    "classifier": classifier.make,
    "autoencoder": autoencoder.make,
}
"""By the names of config.tasks."""


def make(config: Config, say: Say) -> OfData:
    """The task that a configuration names."""
    return TASKS[config.task](config, say)
