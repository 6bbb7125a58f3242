"""Trees of arrays, leaf by leaf: what differs between two for a person to read, and what Orbax is given."""

from typing import Any

import jax
import numpy as np


def describe(item: str, tree: Any) -> dict[str, str]:
    """{"params.conv_in.kernel": "float32[3, 3, 1, 16]", ...}: every leaf, an array or what stands for one, by its path.

    Attributes and keys of the same name are the same: Orbax gives named tuples back as dicts.
    """
    return {
        f"{item}.{jax.tree_util.keystr(path, simple=True, separator='.')}": f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def misfits(saved: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """A line for every leaf that only one of them has, or that has another dtype or shape; from `describe`."""
    return [
        f"{leaf}: {saved.get(leaf, 'none')} in the checkpoint, {wanted.get(leaf, 'none')} here"
        for leaf in sorted(saved | wanted)
        if saved.get(leaf) != wanted.get(leaf)
    ]


def listing(lines: list[str], most: int = 10) -> str:
    """How many leaves differ, and the first of them."""
    count = "1 leaf differs" if len(lines) == 1 else f"{len(lines)} leaves differ"
    rest = f"; and {len(lines) - most} more" if len(lines) > most else ""
    return f"{count}: {'; '.join(lines[:most])}{rest}"


def undivided(tree: Any) -> Any:
    """The same arrays, small ones that all devices have as those of the first.

    Orbax divides what all have among them, by a program for every part of every shape: that saves time from about a
    megabyte on.
    """

    def of(leaf: Any) -> Any:
        small = isinstance(leaf, jax.Array) and leaf.nbytes < 2**20
        return leaf.addressable_data(0) if small and leaf.is_fully_addressable and leaf.is_fully_replicated else leaf

    return jax.tree.map(of, tree)
