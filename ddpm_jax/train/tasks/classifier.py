"""A classifier of noisy images: p(y | x_t, t) of x_t = sqrt(alphas_cumprod_t) x_0 + sqrt(1 - alphas_cumprod_t) eps.

Source: Dhariwal and Nichol 2021 (arXiv:2105.05233), section 4: the noise is that of the diffusion model that it guides.

Every draw is an example's own, see `draws`.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax import build, data, images, objectives
from ddpm_jax.config import defaults
from ddpm_jax.config.run import Config, DataConfig
from ddpm_jax.data import Source
from ddpm_jax.evaluate import accuracy
from ddpm_jax.host.storage import Say
from ddpm_jax.models import Classifier, bind
from ddpm_jax.schedules import Schedule
from ddpm_jax.timesteps import TimestepSampler
from ddpm_jax.train.state import Params, TrainState, make_optimizer, optimized
from ddpm_jax.train.task import Means, Start
from ddpm_jax.train.tasks.draws import Said, draw

HELD_OUT = ("validation", "test")
"""Splits that are not trained on; the first that there is says how good the classifier is."""


@dataclass(frozen=True)
class Classification:
    """mean_b w_b (-log p(y_b | x_t_b, t_b)), t and eps drawn anew for every example of every step; a `Task`.

    Its task_state is that of the timestep sampler.

    Attributes:
      model: model(x_t, t, train=True, dropout_keys=[B] keys) in linen, to logits.
      schedule: of the noise.
      timestep_sampler: how t is drawn, and its weight w.
      optimizer: from optax.
      key: of the whole run.
      image_shape: [H, W, C].
      settings: of the network and of its training, resolved, for `described`; None for no description.
      judged_on: what `finish` measures accuracy on: a source with labels, and what it is, in words; None for nothing.
      say: is told where that is.
    """

    model: Classifier
    schedule: Schedule
    timestep_sampler: TimestepSampler
    optimizer: optax.GradientTransformation
    key: jax.Array
    image_shape: tuple[int, int, int]
    settings: Config | None = None
    judged_on: Callable[[], tuple[Source, str]] | None = None
    say: Say = warnings.warn
    reads: tuple[str, ...] = ("image", "label")

    def init(self, key: jax.Array) -> Params:
        """The network's parameters."""
        return self.model.init(key, jnp.zeros((1, *self.image_shape)), jnp.zeros((1,)))["params"]

    def start(self, params: Params) -> Start:
        """The optimizer's and the timestep sampler's first states."""
        return Start(self.optimizer.init(params), self.timestep_sampler.init())

    def gradient(
        self, state: TrainState, batch: Mapping[str, jax.Array], indices: jax.Array, batch_size: int
    ) -> tuple[Means, Said]:
        """The mean of the weighted losses, the share of right answers and the gradient; t and loss of every example."""
        x_0 = images.to_float(batch["image"])
        drawn = draw(self.key, self.timestep_sampler, state.task_state, state.step, x_0, indices, batch_size)

        def mean_loss(params: Params) -> tuple[jax.Array, objectives.Classified]:
            model_fn = bind(self.model, params, train=True, dropout_keys=drawn.dropout_keys)
            found = objectives.classification(model_fn, self.schedule, x_0, drawn.t, drawn.eps, batch["label"])
            return jnp.mean(drawn.weight * found.loss), found

        (loss, found), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        return Means(loss, {"accuracy": jnp.mean(drawn.weight * found.correct)}, grads), Said(drawn.t, found.loss)

    def update(self, state: TrainState, means: Means, said: Said) -> TrainState:
        """One update of the optimizer, and what the timestep sampler learns."""
        task_state = self.timestep_sampler.update(state.task_state, *said)
        return optimized(state, means.grads, self.optimizer, task_state)

    def pictures(self, params: Params, key: jax.Array) -> np.ndarray | None:
        """It draws none."""
        return None

    def finish(self, params: Params, workdir: Path) -> None:
        """accuracy.csv and accuracy.png: how often it is right, by t."""
        if self.judged_on is None:
            return
        source, what = self.judged_on()
        table = accuracy.by_t(partial(bind, self.model), params, self.schedule, source)
        what = f"{table.n} {what}"
        accuracy.save(workdir / "accuracy", table, what, self.model.out_channels)
        self.say(f"right on {what}: {table.accuracy[0]:.1%} at t = 0, {table.accuracy.mean():.1%} over all t")

    def described(self, num_parameters: int) -> str:
        """The network, as the options that give it."""
        assert self.settings is not None
        return defaults.described(self.settings, self.image_shape, num_parameters)


def make(config: Config, say: Say) -> Callable[[Config, Source, jax.Array], Classification]:
    """What a configuration names, built and checked before there is data; and a function that gives it its network.

    Args:
      config: of the run.
      say: is told how good the classifier is in the end.

    Returns:
      (config resolved for the data, the data, key of the run) -> Classification.

    Raises:
      ValueError: names and numbers that do not go together; of the function, data without labels, and settings that do
        not fit them.
    """
    schedule = build.make_schedule(config.schedule)
    timestep_sampler = build.make_timestep_sampler(config.objective, schedule)

    def of_data(config: Config, source: Source, key: jax.Array) -> Classification:
        shape = source.image_shape
        model = build.make_model(config, shape, check_labels(config, source))
        assert isinstance(model, Classifier)
        optimizer, judged_on = make_optimizer(config.optimizer), lambda: held_out(config.data, source)
        return Classification(
            model, schedule, timestep_sampler, optimizer, key, shape, config, judged_on=judged_on, say=say
        )

    return of_data


def check_labels(config: Config, source: Source) -> tuple[str, ...]:
    """The names of the classes of data.

    Raises:
      ValueError: they have no labels; says how they would.
    """
    if source.classes is None:
        ways = "CLASS/picture.png, label in metadata.jsonl, or labels of an .npz file"
        raise ValueError(
            f"--task classifier learns labels, and {source.name} is read without: "
            + ("leave out --data.labels none" if config.data.labels == "none" else f"give it some, as {ways}")
        )
    return source.classes


def held_out(config: DataConfig, source: Source) -> tuple[Source, str]:
    """(the data that a classifier is judged on, what they are): those of a split that was not trained on, where data
    that were named have one; otherwise those that it was trained on.

    Args:
      config: what was named.
      source: what was trained on.
    """
    splits = data.splits(config.name, data_dir=config.dir) if source.name == config.name else ()
    for split in HELD_OUT:
        if split in splits and split not in config.split:
            found = data.load(config.name, **{**config.arguments(), "split": split})
            return found, f"examples of {config.name}, split {split}, not trained on"
    return source, f"examples of {source.name}, which it was trained on"
