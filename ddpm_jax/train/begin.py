"""The first state of a run that begins with what another one has learned."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from ddpm_jax.config.run import TrainConfig
from ddpm_jax.runs.checkpoint import FIRST_STAGE, Saved, Say, T, items_of, load_run, with_items
from ddpm_jax.runs.leaves import listing
from ddpm_jax.train.state import Params, TrainState

WHOLE = ("params", "ema_params")
"""Of a fork, what must fit; the optimizer's state and whatever else there is begins anew where it does not."""


def check(config: TrainConfig, template: TrainState, networks: Mapping[str, str], say: Say) -> None:
    """Whether `first_state` can do what the configuration asks for; no array is read, nothing is written.

    Args:
      config: begin_from and begin_with.
      template: shapes and shardings of the state.
      networks: that this training is given: their checksums.
      say: is told of damaged files.

    Raises:
      FileNotFoundError: no run in begin_from, or no checkpoint of it.
      ValueError: all its checkpoints are damaged, or they are of another network, or of latents of another autoencoder;
        or a fork has no steps left.
    """
    saved = _opened(config)
    before = load_run(Path(config.begin_from or "")).networks
    if before.get(FIRST_STAGE) != networks.get(FIRST_STAGE):
        raise ValueError(
            f"train.begin_from: {config.begin_from} was trained with another {FIRST_STAGE} (weights "
            f"{before.get(FIRST_STAGE, 'none')}, here {networks.get(FIRST_STAGE, 'none')})"
        )
    _newest(saved, lambda step: _check(saved, step, config, template), say)


def first_state(
    config: TrainConfig, template: TrainState, start: Callable[[Params], TrainState], say: Say
) -> tuple[TrainState, int]:
    """The state before the first step of a run, from the newest intact checkpoint of the run in config.begin_from.

    begin_with "params" or "ema": its parameters, or their average, at step 0; all else as `start` makes it, so the
    average is a copy and the optimizer is fresh. "all": a fork, which goes on as that run would, from its step.

    Args:
      config: begin_from and begin_with.
      template: shapes and shardings of the state.
      start: the state before step 0 with these parameters.
      say: is told where the run begins, and which items of a fork begin anew because they do not fit.

    Returns:
      The state, placed like the template, and the step of the other run.

    Raises:
      FileNotFoundError, ValueError: as `check`.
    """
    begin = jax.jit(start, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, template))
    saved = _opened(config)

    def read(step: int) -> TrainState:
        _check(saved, step, config, template)
        say(f"beginning with {config.begin_with} of {config.begin_from}, step {step}")
        if config.begin_with != "all":
            item = _parameters(config)
            return begin(saved.read(step, {item: template.params})[item])
        fitting = items_of(template)
        for name in [name for name in fitting if name not in WHOLE]:
            if wrong := saved.misfits(step, name, fitting[name]):
                say(f"{name} of step {step} in {config.begin_from} does not fit and begins anew ({listing(wrong)})")
                del fitting[name]
        items = saved.read(step, fitting)
        count = jax.device_put(np.int32(step), template.step.sharding)
        return with_items(begin(items["params"]), count, items)

    return _newest(saved, read, say)


def _opened(config: TrainConfig) -> Saved:
    assert config.begin_from is not None
    directory = Path(config.begin_from)
    try:
        load_run(directory)
        return Saved(directory)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"train.begin_from: {error}") from None


def _newest(saved: Saved, read: Callable[[int], T], say: Say) -> tuple[T, int]:
    try:
        return saved.newest(read, say)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"train.begin_from: {error}") from None


def _check(saved: Saved, step: int, config: TrainConfig, template: TrainState) -> None:
    if config.begin_with == "all" and step >= config.num_steps:
        raise ValueError(
            f"train.begin_with 'all' goes on from step {step} of {config.begin_from}: "
            f"train.num_steps must be larger, got {config.num_steps}"
        )
    for item in WHOLE if config.begin_with == "all" else (_parameters(config),):
        if wrong := saved.misfits(step, item, template.params):
            raise ValueError(
                f"train.begin_from: checkpoint {step} in {saved.directory} is of another network ({listing(wrong)})"
            )


def _parameters(config: TrainConfig) -> str:
    return {"params": "params", "ema": "ema_params"}[config.begin_with]
