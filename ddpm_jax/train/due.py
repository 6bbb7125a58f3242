"""What a run does beside its steps, and when."""

import time
from typing import NamedTuple

from ddpm_jax.config.run import Config
from ddpm_jax.host import processes


class Due(NamedTuple):
    """What a run does after a step."""

    log: bool
    save: bool
    draw: bool
    average: bool
    evaluate: bool


def due(config: Config, k: int) -> Due:
    """What is done after step k: every so many steps, and after the last."""
    train = config.train
    intervals = (
        train.log_every,
        train.checkpoint_every,
        train.sample_every,
        train.average_every,
        config.evaluate.every,
    )
    return Due(*(every is not None and (k % every == 0 or k == train.num_steps) for every in intervals))


class Clock:
    """Minutes since the last checkpoint, as the first process measures them."""

    def __init__(self, minutes: float | None):
        self.seconds = None if minutes is None else 60 * minutes
        self.restart()

    def restart(self) -> None:
        self.start = time.monotonic()

    def is_due(self) -> bool:
        seconds = self.seconds
        return seconds is not None and processes.from_first(lambda: time.monotonic() - self.start >= seconds)
