"""What a command that draws keeps beside its pictures, so that it goes on only with what it began with."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ddpm_jax.guided import Guidance
from ddpm_jax.samplers import Table
from ddpm_jax.trained import Trained, checksum

ELSEWHERE = ("source", "config", "out", "allow_non_finite", "guidance_with", "prompts")
"""Options whose name says nothing of the bits: what they lead to is among the rest."""


def made_with(
    arguments: Any,
    trained: Trained,
    table: Table,
    guidance: Guidance | None,
    read: Mapping[str, np.ndarray] | None = None,
    places: Sequence[str] = (),
) -> dict[str, Any]:
    """All that the bits of the pictures depend on, by the names of options where there are some.

    Args:
      arguments: of the command, a dataclass.
      trained: the network.
      table: of its sampler.
      guidance: of it.
      read: what was read besides.
      places: options that say from where.
    """
    options = {
        name: value for name, value in dataclasses.asdict(arguments).items() if name not in (*ELSEWHERE, *places)
    }
    beside = guidance and guidance.beside
    return {
        "step": trained.step,
        **{f"--{name.replace('_', '-')}": value for name, value in options.items()},
        **{name: checksum(array) for name, array in (read or {}).items()},
        "weights": trained.weights,
        "--guidance-with": None if beside is None else {"step": beside.step, "weights": beside.weights},
        "table of the sampler": checksum(table),
        "network": of_network(trained),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def of_network(trained: Trained) -> str:
    """The checksum of all that a network is beside its weights."""
    network = (trained.config, dataclasses.asdict(trained.reading), trained.image_shape, trained.scheduler_config)
    return checksum(np.frombuffer(json.dumps(network, default=str).encode(), np.uint8))
