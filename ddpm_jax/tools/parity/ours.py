"""Our side: a sampler, and every convention in which implementations differ as one field of a `Setup`."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import schedules
from ddpm_jax.process import ModelFn, PredictionType, VarianceType
from ddpm_jax.samplers import grids
from ddpm_jax.samplers.catalogue import CATALOGUE, Spread
from ddpm_jax.samplers.configs.common import Preset
from ddpm_jax.samplers.denoise import Denoise, EpsAfterClip, clipped, denoiser
from ddpm_jax.samplers.grids import Grid, Pairs
from ddpm_jax.samplers.run import step
from ddpm_jax.samplers.table import Row, Table
from ddpm_jax.schedules import Schedule
from ddpm_jax.tools.parity.mixture import Answer
from ddpm_jax.tools.parity.theirs import Calls

On = Callable[[Schedule, Grid], Table]

# Samplers whose steps need not start where the last one ended.
ONE_STEP = ("ddim", "ddim_eta1", "plms", "pndm")


@dataclasses.dataclass(frozen=True)
class Setup:
    """A sampler of the catalogue with every convention of the papers; conventions.py changes one field at a time.

    Attributes:
      sampler: in CATALOGUE.
      num_steps: N.
      spread: its grid; None is the sampler's own.
      schedule: of the network.
      prediction: of the network.
      variance: that the network learned.
      clip: of x_0; None leaves it.
      eps_after_clip: as in `denoise.clipped`.
      last: where the last step goes: the clean level, or that of t = 0.
      offset: added to every timestep.
      stride: "grid": a step goes to the next level of the grid; "T // N": from t to t - T // N, whatever the next is.
      times: what the network is told: as the grid says, or rounded to whole numbers.
      start: x / alpha starts with standard deviation sqrt(sigma^2 + 1), that of q, or sigma.
      on: another form of the sampler; None is the catalogue's.
    """

    sampler: str
    num_steps: int
    spread: Spread | None = None
    schedule: Schedule = dataclasses.field(default_factory=lambda: schedules.linear(1000))
    prediction: PredictionType = "eps"
    variance: VarianceType = "fixed_large"
    clip: float | None = None
    eps_after_clip: EpsAfterClip = "rederived"
    last: Literal["clean", "first"] = "clean"
    offset: int = 0
    stride: Literal["grid", "T // N"] = "grid"
    times: Literal["exact", "rounded"] = "exact"
    start: Literal["q", "sigma"] = "q"
    on: On | None = None

    def levels(self) -> Grid | Pairs:
        """Where it steps.

        Raises:
          ValueError: levels that this schedule does not have.
        """
        entry = CATALOGUE[self.sampler]
        spread = entry.spread if self.spread is None else self.spread
        grid = spread(self.schedule, self.num_steps)
        visited = list(grid.levels[:-1])
        if self.offset:
            visited = [grids.level(self.schedule, int(s.time) + self.offset) for s in visited]
        first = grids.level(self.schedule, 0)
        if self.times == "rounded":
            visited = [s._replace(time=float(np.round(s.time))) for s in visited]
        if self.stride == "T // N":
            if self.sampler not in ONE_STEP:
                raise ValueError(f"steps of {self.sampler} must chain: it looks further than one step")
            steps = [int(s.time) for s in visited]
            return grids.strided(self.schedule, steps, self.schedule.num_timesteps // self.num_steps, last=self.last)
        if self.last == "first":
            return Grid((*visited, first), idle_end=bool(np.isclose(visited[-1].sigma, first.sigma)))
        return Grid((*visited, grid.levels[-1]))

    def preset(self) -> Preset:
        """The table, and what turns a network into what it calls.

        Raises:
          ValueError: conventions that this sampler cannot have.
        """
        on = CATALOGUE[self.sampler].on if self.on is None else self.on
        levels = self.levels()
        table = on(self.schedule, levels)  # pyright: ignore[reportArgumentType]  # samplers of one step take Pairs too
        if self.start == "sigma":
            table = table._replace(init=levels.steps()[0][0].sigma)

        def wrap(model_fn: ModelFn) -> Denoise:
            denoise = denoiser(model_fn, self.prediction, variance=self.variance)
            return denoise if self.clip is None else clipped(denoise, self.clip, self.eps_after_clip)

        return Preset(table, wrap)


def calls(
    preset: Preset,
    answer: Answer,
    x_T: np.ndarray,
    noise: np.ndarray,
    wrap: Callable = lambda d: d,
    x_0: np.ndarray | None = None,
) -> Calls:
    """Where a table calls the network, along its rows, in float64; noise [N, B, H, W, C]. From x_0 as from x_t."""
    table = preset.table
    x = table.init * x_T if x_0 is None else table.rows.alpha[0] * x_0 + table.rows.sigma[0] * x_T
    with jax.enable_x64(True):
        model_fn = lambda x, t: jnp.asarray(answer(np.asarray(x), float(t[0])))
        denoise = wrap(preset.denoiser(model_fn))
        registers = (jnp.asarray(x), *[jnp.zeros_like(x_T)] * (table.rows.update.shape[1] - 1))
        xs = [np.asarray(registers[0])]
        for k in range(table.num_calls):
            numbers = (float(leaf[k]) for leaf in table.rows[:5])
            row = Row(*numbers, *jax.tree.map(lambda leaf, k=k: leaf[k], table.rows[5:]))
            registers = step(denoise, row, registers, jnp.asarray(noise[k], np.float64))
            xs.append(np.asarray(registers[0]))
    return Calls(xs, [float(t) for t in table.rows.time])
