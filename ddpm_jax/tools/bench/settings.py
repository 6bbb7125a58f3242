"""What one measurement is told."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp

from ddpm_jax.tools.bench.blocks import Comparison
from ddpm_jax.tools.bench.interleave import Job, interleaved, warmed
from ddpm_jax.tools.bench.networks import NETWORKS, Network

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """The options of the command, one batch size and one dtype of them.

    Attributes:
      network: name in NETWORKS.
      batch: images at once.
      dtype: of convolutions and matrix products.
      num_steps: of samplers.
      rounds: of every comparison.
      seconds: after which a comparison begins no more rounds.
      only: parts of the names of the contestants that are measured; all where there are none.
      workdir: of the run, or another place, whose network solvers are compared on.
      data: what is told of its images, by option; of no run.
    """

    network: str = "cifar10"
    batch: int = 16
    dtype: str = "float32"
    num_steps: int = 5
    rounds: int = 9
    seconds: float | None = None
    only: tuple[str, ...] = ()
    workdir: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ours(self) -> Network:
        """The network in its dtype."""
        network = NETWORKS[self.network]
        return network._replace(model=network.model.clone(dtype=jnp.dtype(self.dtype)))

    @property
    def label(self) -> str:
        """What tells it from others of the same part."""
        return f"{self.network}_b{self.batch}_{self.dtype}"

    def asked_for(self, name: str) -> bool:
        """Whether a contestant is to be measured."""
        return not self.only or any(text in name for text in self.only)

    @property
    def not_asked(self) -> str:
        """Why the others are missing."""
        return f"not asked for (--only {' '.join(self.only)})"


def compare(
    settings: Settings,
    title: str,
    jobs: dict[str, Job],
    *,
    reference: str = "ddpm_jax",
    missing: dict[str, str] | None = None,
    items: float = 1,
    unit: str = "image",
    flops: dict[str, float] | None = None,
    note: str = "",
) -> Comparison:
    """Warm the jobs that are asked for and take their times; those that cannot run are listed with what they said."""
    left_out = {name: settings.not_asked for name in jobs if not settings.asked_for(name)}
    running, failed = warmed({name: job for name, job in jobs.items() if name not in left_out})
    failed |= left_out
    seconds = interleaved(running, settings.rounds, seconds=settings.seconds)
    return Comparison(title, reference, seconds, items, unit, flops or {}, (missing or {}) | failed, note)
