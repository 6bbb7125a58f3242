"""What a number depends on beside the pictures themselves, said with the number: its protocol card.

Published distances differ by conventions more than by models: by N, the reference and how it was made, the resize
before the feature network, its weights, labels, and the sampler.
"""

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from ddpm_jax.evaluate.features import Features
from ddpm_jax.evaluate.metrics import Number
from ddpm_jax.host.storage import write_atomically

PACKAGES = ("ddpm-jax", "jax", "jaxlib", "numpy")

Card = dict[str, dict[str, Any]]


def of_features(features: Features, outputs: Sequence[str]) -> dict[str, Any]:
    """The feature network, and which numbers of it."""
    return {
        "network": features.name,
        "weights": f"SHA-256 {features.sha256}",
        "resize": features.resize,
        "outputs": ", ".join(f"{output} ({features.sizes[output]} numbers)" for output in outputs),
    }


def versions() -> dict[str, str]:
    """Of the packages, and where the numbers are computed."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {**found, "python": platform.python_version(), "device": jax.devices()[0].device_kind}


def size(shape: tuple[int, int, int]) -> str:
    """Of an image, in words."""
    return " x ".join(map(str, shape))


def card_text(card: Card) -> str:
    """The card as people read it: a paragraph each, a line a fact."""
    width = max(len(name) for part in card.values() for name in part)
    lines = []
    for title, part in card.items():
        lines += [title, *(f"  {name:{width}}  {value}" for name, value in part.items()), ""]
    return "\n".join(lines)


def table_text(numbers: Mapping[str, Number], best: Mapping[str, str]) -> str:
    """A line for each number: name, value, standard error, and what is best."""
    width = max(map(len, numbers))
    lines = []
    for name, (value, error) in numbers.items():
        said = " " * 14 if error is None else f"± {error:<12.3g}"
        lines.append(f"{name:{width}}  {value:12.6g} {said} {best[name]}")
    return "\n".join(lines)


def save(path: Path, numbers: Mapping[str, Number], notes: Sequence[str], card: Card, best: Mapping[str, str]) -> None:
    """path.json and path.txt; each appears whole.

    Args:
      path: of both, without an ending.
      numbers: by name.
      notes: what must be said beside them.
      card: the protocol.
      best: in words, by name.
    """
    values = {name: number._asdict() for name, number in numbers.items()}
    result = {"metrics": values, "notes": list(notes), "protocol": card}
    write_atomically(path.with_name(f"{path.name}.json"), json.dumps(result, indent=2) + "\n")
    text = "\n".join([table_text(numbers, best), *notes, "", card_text(card)])
    write_atomically(path.with_name(f"{path.name}.txt"), text)
