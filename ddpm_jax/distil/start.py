"""The hand-made tables of N calls: every sampler of the catalogue without noise on every grid."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ddpm_jax.distil.fit import Errors, Network, Pairs, errors_between
from ddpm_jax.samplers import Runner, Table
from ddpm_jax.samplers.catalogue import CATALOGUE, GRIDS, make_table
from ddpm_jax.schedules import Schedule


class HandMade(NamedTuple):
    """A table by name, and its error where it was measured."""

    sampler: str
    grid: str
    table: Table
    errors: Errors = Errors(np.nan, np.nan)

    @property
    def name(self) -> str:
        return f"{self.sampler} on {self.grid}"

    def error(self, measure: str) -> float:
        """A field of the errors, for sorting: infinite where it is NaN."""
        found = getattr(self.errors, measure)
        return np.inf if np.isnan(found) else found


def hand_made(schedule: Schedule, num_calls: int) -> Iterator[HandMade]:
    """All that call the network num_calls times, whatever number of steps that is."""
    for name, entry in CATALOGUE.items():
        if entry.stochastic or entry.variance is not None:
            continue
        for grid in GRIDS:
            for num_steps in range(entry.least, min(num_calls, schedule.num_timesteps) + 1):
                try:
                    table = make_table(name, schedule, num_steps, grid)
                except ValueError:
                    continue  # a grid that the sampler cannot run on, or that has no such number of steps
                if table.num_calls == num_calls:
                    yield HandMade(name, grid, table)


def ranked(candidates: list[HandMade], network: Network, pairs: Pairs) -> list[HandMade]:
    """The candidates by their error on pairs that are one batch, least first; what is not finite is last.

    Args:
      candidates: of at most 6 registers each.
      network: whose images.
      pairs: with the teacher's.
    """
    runner = Runner(network.make_denoise, pairs.targets.shape, max(item.table.num_calls for item in candidates))
    found = []
    for item in candidates:
        images = np.asarray(runner(item.table, pairs.key, *network.data, first_index=pairs.first_index))
        found.append(item._replace(errors=errors_between(images, pairs.targets)))
    return sorted(found, key=lambda item: item.error("geometric_mean"))
